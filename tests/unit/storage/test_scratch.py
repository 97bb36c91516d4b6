from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from distrib.storage.scratch import scratch
folder = scratch()
assert scratch() == folder
(folder / "file").write_text("x")
print(folder, flush=True)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(tmp_path)}


def make(environment: dict[str, str], after: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE + after], env=environment, capture_output=True, text=True
    )


def test_the_folder_is_removed_at_exit(tmp_path: Path, environment: dict[str, str]) -> None:
    result = make(environment)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_by_the_next(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    killed = make(environment, f"import os; os.kill(os.getpid(), {signal.SIGKILL.value})")
    assert Path(killed.stdout.strip(), "file").exists()
    (tmp_path / "of another program").mkdir()
    assert make(environment).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["of another program"]


def test_the_folder_of_a_live_process_stays(tmp_path: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CODE + "sys.stdin.read()"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as living:
        assert living.stdout is not None
        folder = Path(living.stdout.readline().strip())
        assert make(environment).returncode == 0
        assert (folder / "file").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_has_its_own_folder(environment: dict[str, str]) -> None:
    after = """
import os
pid = os.fork()
if pid == 0:
    assert scratch() != folder
    sys.exit()
os.waitpid(pid, 0)
assert (folder / "file").exists()
"""
    result = make(environment, after)
    assert result.returncode == 0, result.stderr
