"""`distrib horovod build` on the wheel of `make setup`: reused, and tried with two ranks."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.errors import ConfigurationError
from distrib.launch.horovod.build import installed_checksum
from distrib.launch.horovod.check import check
from distrib.launch.horovod.recipe import recipe_for

CACHE = Path(__file__).parents[2] / ".cache" / "horovod"


def _missing() -> str | None:
    """Return why the command would change this environment, or `None`."""
    if installed_checksum() is None:
        return "Horovod is not installed: distrib horovod build"
    wheels = (CACHE / recipe_for(os.environ).key).glob("*.whl")
    if not any(
        hashlib.sha256(wheel.read_bytes()).hexdigest() == installed_checksum() for wheel in wheels
    ):
        return f"the installed Horovod is not the one in {CACHE}: make setup"
    return None


@pytest.fixture(scope="module", autouse=True)
def _present() -> None:
    reason = _missing()
    if reason is not None:
        pytest.skip(reason)


def build(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "distrib.launch.cli", "horovod", "build"]
    return subprocess.run(
        [*command, "--no-gpu", f"--cache={CACHE}", *options],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_installed_wheel_is_checked_and_not_installed_again() -> None:
    before = installed_checksum()
    done = build()
    assert done.returncode == 0, done.stdout
    (wheel,) = (CACHE / recipe_for(os.environ).key).glob("*.whl")
    assert done.stdout.splitlines() == [f"reusing {wheel}", "checked: two ranks got the right sum"]
    assert installed_checksum() == before


def test_no_check_starts_no_rank() -> None:
    done = build("--no-check")
    assert done.returncode == 0, done.stdout
    assert "checked" not in done.stdout


def test_a_broken_horovod_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text("raise ImportError('libmpi.so.99')\n")
    done = build(PYTHONPATH=str(tmp_path))
    assert done.returncode == 78
    assert "Horovod is installed, but its check with 2 rank(s) on CPUs failed" in done.stdout
    assert "libmpi.so.99" in done.stdout
    assert "--force" in done.stdout


def test_a_horovod_that_crashes_is_tried_once(tmp_path: Path) -> None:
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text(
        "import os, pathlib, signal, sys\n"
        f"pathlib.Path({str(tmp_path)!r}, f'started-{{os.getpid()}}').touch()\n"
        "os.write(2, b'illegal \\xff instruction\\n')\n"
        "os.kill(os.getpid(), signal.SIGILL)\n"
    )
    done = build(PYTHONPATH=str(tmp_path))
    assert done.returncode == 78, done.stdout
    assert "check with 2 rank(s) on CPUs failed" in done.stdout
    assert " instruction" in done.stdout
    assert len(list(tmp_path.glob("started-*"))) <= 2


def test_hanging_ranks_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="did not end within 1 s"):
        check(seconds=1)
