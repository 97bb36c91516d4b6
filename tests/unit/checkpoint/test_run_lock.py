import os
import signal
import subprocess
import sys
from pathlib import Path

from distrib.checkpoint import run_lock

LOCK = (
    "import sys; from pathlib import Path; from distrib.checkpoint import run_lock;"
    "run_lock.acquire(Path(sys.argv[1]), 0.0)"
)


def other_process_can_lock(folder: Path) -> bool:
    command = [sys.executable, "-P", "-c", LOCK, str(folder)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_a_child_does_not_hold_the_lock_longer_than_its_parent(tmp_path: Path) -> None:
    """As a worker of `multiprocessing` does that outlives the `fit`, or a killed parent."""
    run_lock.acquire(tmp_path, 0.0)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        assert not other_process_can_lock(tmp_path)
        run_lock.release(tmp_path)
        assert other_process_can_lock(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
