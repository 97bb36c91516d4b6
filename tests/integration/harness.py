"""Starts `job.py` as users start a script, and reads what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from distrib.errors import EXIT_PREEMPTED

JOB = Path(__file__).with_name("job.py")
KILLED = -signal.SIGKILL


def start(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the job once, to its end or its death."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.run(
        [sys.executable, str(JOB), "--run", str(run), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def finish(run: Path, *arguments: str) -> dict[str, Any]:
    """Run the job, which must end by itself, and return its result."""
    done = start(run, *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return result(run)


def result(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


def kill_and_finish(run: Path, kills: list[str], *arguments: str) -> dict[str, Any]:
    """Start the job once for each kill, each of which must strike, and once more to the end."""
    for kill in kills:
        done = start(run, *arguments, *(f"--kill={part}" for part in kill.split("+")))
        expected = EXIT_PREEMPTED if kill.startswith(("signal", "interrupt")) else KILLED
        assert done.returncode == expected, f"{kill} did not strike:\n{done.stderr[-4000:]}"
        assert not (run / "result.json").exists()
    return finish(run, *arguments)
