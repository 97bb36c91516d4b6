import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distrib.storage.file_lock import acquire_lock

HOLDER = """
import os, sys, time
from distrib.storage.file_lock import acquire_lock
assert acquire_lock(os.open(sys.argv[1], os.O_RDONLY))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["file", "folder"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch() if request.param == "file" else path.mkdir()
    return path


@pytest.fixture
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of `path`."""
    command = [sys.executable, "-P", "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_two_descriptors_of_one_file_exclude_each_other(path: Path) -> None:
    first, second = (os.open(path, os.O_RDONLY) for _ in range(2))
    assert acquire_lock(first)
    assert not acquire_lock(second)
    os.close(first)
    assert acquire_lock(second)
    os.close(second)


def test_the_lock_of_a_killed_process_is_free(path: Path, holder: "subprocess.Popen[str]") -> None:
    descriptor = os.open(path, os.O_RDONLY)
    assert not acquire_lock(descriptor)
    holder.kill()
    holder.wait()
    assert acquire_lock(descriptor)
    os.close(descriptor)


def test_wait_returns_once_the_holder_is_gone(path: Path, holder: "subprocess.Popen[str]") -> None:
    descriptor = os.open(path, os.O_RDONLY)
    with subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -9 {holder.pid}"]):
        assert acquire_lock(descriptor, wait=True)
    os.close(descriptor)
