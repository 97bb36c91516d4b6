"""`distrib k8s leave` with real processes that look like ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from distrib.heartbeat import VARIABLE
from distrib.launch.cli import main
from distrib.launch.k8s import pre_stop

# The rank has a child process, which must not get SIGTERM: stopping it is up to the rank.
RANK_SCRIPT = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def stop(number, frame):
    if sys.argv[1] == "deaf":
        return
    alive = child.poll() is None
    child.kill()
    sys.exit(75 if alive else 1)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(600)
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started = []

    def call(kind: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", RANK_SCRIPT, kind],
            env={**os.environ, VARIABLE: "3:1"},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Hides ranks of other tests on this machine from the command."""
    find = pre_stop.find_ranks

    def call(mine: set[int]) -> None:
        monkeypatch.setattr(pre_stop, "find_ranks", lambda: find() & mine)

    return call


def test_ranks_get_sigterm_and_are_waited_for(
    start: Start, only: Callable[[set[int]], None]
) -> None:
    processes = [start("saves"), start("saves")]
    only({process.pid for process in processes})
    assert main(["k8s", "leave", "--seconds=60"]) == 0
    assert [process.wait() for process in processes] == [75, 75]


def test_a_rank_that_does_not_end_is_reported(
    start: Start, only: Callable[[set[int]], None], capfd: pytest.CaptureFixture[str]
) -> None:
    pid = start("deaf").pid
    only({pid})
    assert main(["k8s", "leave", "--seconds=0.5"]) == 76
    assert f"have not ended within 0.5 s: {pid}" in capfd.readouterr().err
