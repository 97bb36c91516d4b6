"""What becomes of the processes of `num_workers` when one of them, or their parent, is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import environment, forked, launch

SCRIPT = Path(__file__).with_name("data_workers.py")


def begin(folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        forked(SCRIPT, str(folder), mode), stderr=subprocess.PIPE, env=environment(), text=True
    )


def workers(folder: Path) -> list[int]:
    return [int(file.name.partition("-")[2]) for file in folder.glob("worker-*")]


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        ("forked", signal.SIGKILL),
        ("stuck", signal.SIGKILL),
        pytest.param("endless", signal.SIGTERM, marks=pytest.mark.exhaustive),
    ],
)
def test_workers_end_with_their_parent(tmp_path: Path, mode: str, number: int) -> None:
    job = begin(tmp_path, mode)
    wait_for(lambda: len(workers(tmp_path)) == 2)
    if mode != "endless":
        wait_for(lambda: any(tmp_path.glob("stuck")) or any(tmp_path.glob("child-*")))
    processes = workers(tmp_path)
    os.kill(parent_of(processes[0]), number)
    wait_for(lambda: not any(map(is_alive, processes)))
    for child in tmp_path.glob("child-*"):
        os.kill(int(child.name.partition("-")[2]), signal.SIGKILL)
    job.communicate()


def test_a_killed_worker_ends_the_job_with_a_message(tmp_path: Path) -> None:
    job = begin(tmp_path, "endless")
    wait_for(lambda: len(workers(tmp_path)) == 2)
    processes = workers(tmp_path)
    os.kill(processes[0], signal.SIGKILL)
    _, errors = job.communicate()
    assert job.returncode == 1
    assert re.search(rf"of 2 \(process {processes[0]}\) was killed by SIGKILL (at|while)", errors)
    assert not any(map(is_alive, processes))


def test_two_ranks_with_workers_read_what_one_process_reads(tmp_path: Path) -> None:
    alone = begin(tmp_path, "threads")
    done = launch(2, SCRIPT, str(tmp_path), "workers")
    assert done.returncode == 0, done.stderr[-4000:]
    processes = workers(tmp_path)
    assert len(processes) == 4
    assert not any(map(is_alive, processes))
    alone.communicate()
    expected = np.load(tmp_path / "threads-0.npz")
    parts = [np.load(tmp_path / f"workers-{rank}.npz") for rank in range(2)]
    for name in ("x", "number"):
        first, second = (part[name].reshape(5, 4, *part[name].shape[1:]) for part in parts)
        batches = np.concatenate([first, second], axis=1)
        assert batches.tobytes() == expected[name].tobytes()
