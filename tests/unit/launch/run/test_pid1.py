"""The work of process 1, by another process; `tests/integration` has a real process 1."""

import ctypes
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PR_SET_CHILD_SUBREAPER = 36
PARENT = """
import sys
from distrib.launch.run.pid1 import as_child
def work():
{}
sys.exit(as_child(work))
"""


def start(work: str) -> "subprocess.Popen[str]":
    lines = "\n".join(f"    {line}" for line in work.splitlines())
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT.format(lines)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1),
    )


@pytest.mark.parametrize(
    ("work", "code"),
    [("return 0", 0), ("return 75", 75), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_exit_codes(work: str, code: int) -> None:
    assert start(work).wait(60) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_forwarded(number: signal.Signals) -> None:
    process = start(
        f"import signal, sys\nsignal.signal({int(number)}, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\nwhile True: signal.sigtimedwait([], 0.01)"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(60) == 75


@pytest.mark.parametrize("who", ["os.getpid()", "os.getppid()"])
def test_a_signal_after_the_work_changes_nothing(who: str) -> None:
    """At exit, while the child still exists."""
    process = start(f"import atexit, os\natexit.register(lambda: os.kill({who}, 15))\nreturn 0")
    assert process.wait(60) == 0


def test_a_signal_after_the_childs_end_changes_nothing() -> None:
    code = PARENT.format("    return 75").replace("sys.exit(", "code = (")
    code += "import os\nos.kill(os.getpid(), 15)\nsys.exit(code)"
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=60).returncode == 75


def test_orphans_are_reaped() -> None:
    """`sh` dies at once and leaves an orphan, which only process 1 can reap."""
    process = start(
        "import signal, subprocess\n"
        "subprocess.run(['sh', '-c', 'sleep 0.1 >&- & echo $!'])\n"
        "signal.pause()"
    )
    assert process.stdout is not None
    orphan = Path(f"/proc/{int(process.stdout.readline())}")
    deadline = time.monotonic() + 30
    while orphan.exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    assert not orphan.exists()
    process.terminate()
    assert process.wait(60) == 143
