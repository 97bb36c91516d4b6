"""Starts `job.py` as users start a script, and reads what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from distrib.errors import EXIT_PREEMPTED

JOB = Path(__file__).with_name("job.py")
KILLED = -signal.SIGKILL


_nursery: subprocess.Popen[str] | None = None


def start(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the job once, to its end or its death."""
    nursery = _start_nursery()
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        command = ["--run", str(run), *arguments]
        order = {"script": str(JOB), "arguments": command}
        order |= {"output": str(output), "errors": str(errors)}
        print(json.dumps(order), file=nursery.stdin, flush=True)
        status = int(nursery.stdout.readline())
        return subprocess.CompletedProcess(command, status, output.read_text(), errors.read_text())


def _start_nursery() -> subprocess.Popen[str]:
    """Return the process that jobs are forked from; see `nursery.py`."""
    global _nursery
    if _nursery is None:
        _nursery = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,  # It ends when this process does.
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
    return _nursery


def launch(
    size: int, script: Path, *arguments: str, backend: str = "horovod"
) -> subprocess.CompletedProcess[str]:
    """Run a script on several ranks of this machine, to its end or its death."""
    command = [str(Path(sys.executable).with_name("distrib")), "run", "-np", str(size)]
    command += ["--backend", backend]
    return subprocess.run(
        [*command, str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=400,
    )


def environment() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


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
