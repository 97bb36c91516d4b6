"""The command on the wheel that `make setup` has built: it is reused, and two ranks prove it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.errors import ConfigurationError
from distrib.launch.horovod.build import check, installed
from distrib.launch.horovod.wheel import recipe

CACHE = Path(__file__).parents[2] / ".cache" / "horovod"


def _missing() -> str | None:
    """Why the command would not leave this environment as it is, or `None`."""
    if installed() is None:
        return "Horovod is not installed: distrib horovod build"
    wheels = (CACHE / recipe(os.environ).key).glob("*.whl")
    if not any(hashlib.sha256(wheel.read_bytes()).hexdigest() == installed() for wheel in wheels):
        return f"the Horovod that is installed is not the one in {CACHE}: make setup"
    return None


@pytest.fixture(scope="module", autouse=True)
def _present() -> None:
    reason = _missing()
    if reason is not None:
        pytest.skip(reason)


def build(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "distrib.launch.cli", "horovod", "build"]
    return subprocess.run(
        [*command, f"--cache={CACHE}", *options],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_wheel_that_is_there_is_proven_and_not_installed_again() -> None:
    before = installed()
    done = build()
    assert done.returncode == 0, done.stdout
    (wheel,) = (CACHE / recipe(os.environ).key).glob("*.whl")
    assert done.stdout.splitlines() == [f"reusing {wheel}", "checked: two ranks agree on a sum"]
    assert installed() == before


def test_without_the_check_no_rank_is_started() -> None:
    done = build("--no-check")
    assert done.returncode == 0, done.stdout
    assert "checked" not in done.stdout


def test_a_horovod_that_does_not_work_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text("raise ImportError('libmpi.so.99')\n")
    done = build(PYTHONPATH=str(tmp_path))
    assert done.returncode == 78
    assert "Horovod is installed, but two ranks that add their tensors failed" in done.stdout
    assert "libmpi.so.99" in done.stdout
    assert "--force" in done.stdout


def test_ranks_that_do_not_end_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="did not end within 1 s"):
        check(seconds=1)
