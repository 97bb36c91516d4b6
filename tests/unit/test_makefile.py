"""Which Horovod `make` builds, as `make --dry-run` says it, and which packages it installs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ".venv/bin/distrib horovod build"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clone in which everything but Horovod has been installed."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "launch" / "horovod", tmp_path / "launch" / "horovod")
    for name in ("bin/python", "installed", "linked", "programs"):
        (tmp_path / ".venv" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".venv" / name).touch()
    return tmp_path


def made(tree: Path, target: str, **environment: str) -> list[str]:
    """Return the commands that build Horovod and run tests for a target."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    kept.pop("DISTRIB_TEST_DEVICES", None)
    done = subprocess.run(
        ["make", "--dry-run", target],
        cwd=tree,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if BUILD in line or "[gpu]" in line]


CPU = [f"{BUILD} --no-gpu --cache .cache/horovod"]


def test_a_first_setup_builds_for_cpus(tree: Path) -> None:
    assert made(tree, "setup") == CPU
    (tree / ".venv" / "horovod").touch()
    assert made(tree, "setup") == []


def test_tests_on_gpus_install_cuda_and_build_for_gpus(tree: Path) -> None:
    (tree / ".venv" / "horovod").touch()
    install, build = made(tree, "gpu")
    assert install.endswith("-e '.[gpu]'")
    assert build == f"{BUILD} --gpu --cache .cache/horovod"
    assert made(tree, "gpu", DISTRIB_TEST_DEVICES="gpu") == [install, build]
    assert made(tree, "gpu", DISTRIB_TEST_DEVICES="cpu") == []


def test_horovod_for_gpus_is_kept_by_later_setups(tree: Path) -> None:
    (tree / ".venv" / "horovod-gpu").touch()
    assert made(tree, "setup") == made(tree, "gpu") == []


def test_a_build_for_gpus_that_failed_is_replaced(tree: Path) -> None:
    stamp = tree / ".venv" / "horovod"
    stamp.touch()
    program = tree / ".venv" / "bin" / "python"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    subprocess.run(["make", "-o", ".venv/linked", "gpu"], cwd=tree, capture_output=True)
    assert not stamp.exists()
    assert made(tree, "setup") == CPU


@pytest.mark.parametrize("module", ["cuda.py", "cuda_adapter.h", "linkage.py"])
def test_what_only_gpus_need_rebuilds_nothing_for_cpus(tree: Path, module: str) -> None:
    for name in ("horovod", "horovod-gpu"):
        (tree / ".venv" / name).touch()
    newer = (tree / ".venv" / "horovod").stat().st_mtime + 10
    os.utime(tree / "launch" / "horovod" / module, (newer, newer))
    assert len(made(tree, "gpu")) == 2
    (tree / ".venv" / "horovod-gpu").unlink()
    assert made(tree, "setup") == []


def test_the_page_names_every_package_that_make_installs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (programs,) = re.findall(r"^PROGRAMS := ((?:.*\\\n)*.*)", makefile, re.MULTILINE)
    packages = {entry.partition(":")[2] for entry in programs.replace("\\", "").split()}
    packages |= set(re.findall(r"missing=.*?(lib\S+)\"", makefile))
    packages |= set(re.findall(r"apt-get -qq install -y (\S+);", makefile))
    assert {"g++", "libopenmpi-dev", "python3-venv"} <= packages
    page = (ROOT / "docs" / "horovod.md").read_text()
    assert {name for name in packages if f"`{name}`" not in page} == set()
