import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distrib.state.git_revision import git_revision


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script that runs, in a folder of its own."""
    script = tmp_path / "train.py"
    script.write_text("1\n")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return script


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(folder), *name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_no_repository(script: Path) -> None:
    assert git_revision() is None


def test_no_git(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None


def test_revision(script: Path) -> None:
    git(script.parent, "init")
    assert git_revision() is None
    git(script.parent, "add", "train.py")
    git(script.parent, "commit", "-m", "a")
    revision = git(script.parent, "rev-parse", "HEAD")
    (script.parent / "log.csv").write_text("not of the repository")
    assert git_revision() == {"revision": revision, "modified": False}
    script.write_text("2\n")
    assert git_revision() == {"revision": revision, "modified": True}


def test_a_git_that_hangs(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("git", options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    assert git_revision() is None
