"""Starts `job.py` as users start a script, and reads its result."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from distrib.errors import EXIT_PREEMPTED

# Environment variable that `make gpu` sets to the kind of devices to use, "gpu" or "cpu".
DEVICES = "DISTRIB_TEST_DEVICES"
JOB = Path(__file__).with_name("job.py")
KILLED = -signal.SIGKILL
_kept: list[subprocess.Popen[str]] = []


@functools.cache
def nursery() -> str:
    """Return the address of the process that jobs are forked from; see `nursery.py`."""
    # Not an abstract socket, which only one network namespace could reach.
    folder = tempfile.mkdtemp(prefix="distrib-nursery-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = f"{folder}/socket"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("nursery.py")), address],
        stdin=subprocess.PIPE,  # The nursery ends when this process does.
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    _kept.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return address


def forked(script: Path, *arguments: str) -> list[str]:
    """Return a command that runs a script, in a process forked from the nursery unless on GPUs."""
    if os.environ.get(DEVICES) == "gpu":
        return [sys.executable, str(script), *arguments]
    stand_in = str(Path(__file__).with_name("stand_in.py"))
    return [sys.executable, "-I", "-S", stand_in, nursery(), str(script), *arguments]


def start(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the job once, until it ends or is killed."""
    return _complete(forked(JOB, "--run", str(run), *arguments))


def launch(
    size: int, script: Path, *arguments: str, backend: str = "horovod", attempts: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a script on several ranks of this machine, by default without restarts."""
    launcher = [str(Path(sys.executable).with_name("distrib")), "run", "-np", str(size)]
    options = ["--backend", backend, "--attempts", str(attempts)]
    return _complete([*launcher, *options, *forked(script, *arguments)])


def _complete(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=400)


def begin(run: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the job in the background; its stderr goes to the file `<run>.output`."""
    with (run.parent / f"{run.name}.output").open("w") as output:
        command = forked(JOB, "--run", str(run), *arguments)
        return subprocess.Popen(command, stderr=output, env=environment() | variables, text=True)


def environment() -> dict[str, str]:
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return quiet if os.environ.get(DEVICES) == "gpu" else {**quiet, "CUDA_VISIBLE_DEVICES": "-1"}


def finish(run: Path, *arguments: str) -> dict[str, Any]:
    """Run the job, assert that it succeeds, and return its result."""
    done = start(run, *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return result(run)


@functools.cache
def undisturbed(*arguments: str, ranks: int = 1, backend: str = "horovod") -> dict[str, Any]:
    """Return the result of an undisturbed run of the job, made once per process and arguments.

    Only kills need the pauses after steps, so this run makes none.
    """
    arguments = (*arguments, "--pace", "0")
    with tempfile.TemporaryDirectory(prefix="distrib-undisturbed-") as folder:
        run = Path(folder) / "run"
        if ranks == 1:
            return finish(run, *arguments)
        done = launch(ranks, JOB, "--run", str(run), *arguments, backend=backend)
        assert done.returncode == 0, done.stderr[-4000:]
        return result(run)


def result(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


def kill_and_finish(run: Path, kills: list[str], *arguments: str) -> dict[str, Any]:
    """Run the job once for each kill, assert that the kill happened, and run it to the end."""
    for kill in kills:
        done = start(run, *arguments, *(f"--kill={part}" for part in kill.split("+")))
        expected = EXIT_PREEMPTED if kill.startswith(("signal", "interrupt")) else KILLED
        assert done.returncode == expected, f"{kill} did not strike:\n{done.stderr[-4000:]}"
        assert not (run / "result.json").exists()
    return finish(run, *arguments)
