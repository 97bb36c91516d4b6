"""A run's directory with real checkpoints, and the `distrib` command in this process."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distrib.checkpoint import commit, training_item, transfer
from distrib.checkpoint.attempts import Attempt, Commit
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.manifest import Manifest
from distrib.checkpoint.orbax_format import files
from distrib.checkpoint.saver import Content, Saver
from distrib.launch.cli import main
from distrib.storage.locate import locate
from distrib.storage.location import Location


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def table(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]


class Run:
    """A run that saves what a test gives it.

    Attributes:
        url: Of its directory.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.directory = CheckpointDirectory(locate(url, "directory"))

    @property
    def location(self) -> Location:
        return self.directory.location

    def save(self, *steps: int, attempt: Attempt | None = None, **changes: Any) -> Attempt:
        attempt = attempt or self.directory.begin(4)
        saver = Saver(self.directory, attempt, None)
        for step in steps:
            saver.save(content(step, **changes))
        saver.close()
        return attempt

    def save_superseded(self, step: int, **changes: Any) -> None:
        """Commit a checkpoint by an attempt that was superseded at the last moment."""
        old = self.directory.begin(1)
        self.directory.begin(1)
        saved = content(step, **changes)
        draft = commit.draft(self.location, step, old.number)
        written = transfer.write(files(saved.arrays, saved.training), draft, None)
        root = commit.data_root(self.location, step, old.number)
        manifest = Manifest(step, 0, step, time.time(), written, old.number, root=root)
        commit.publish(self.location, manifest)
        old.committed(Commit(step, old.number))

    def data(self, step: int) -> Location:
        """A data file of a checkpoint."""
        (stored,) = (c for c in self.directory.checkpoints() if c.manifest.step == step)
        return stored.root / "arrays/d/000000"

    def damage(self, step: int) -> Location:
        """Flip a bit of a data file; a second call repairs it."""
        file = self.data(step)
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        return file

    def contents(self) -> dict[str, bytes]:
        """All files of the run except the lock."""
        system = self.location.filesystem
        paths = system.find(self.location.path)
        return {path: system.cat_file(path) for path in paths if not path.endswith("/.lock")}


def content(
    step: int, values: float | None = None, metrics: Any = None, **training: Any
) -> Content:
    """Return a checkpoint whose only weights are three times `values` (the step's number)."""
    weights = np.full(3, step if values is None else values, np.float32)
    names = [f"bn/mean@{number}" for number in range(2)]
    variable = {"group": "model", "path": "bn/mean", "shape": [3], "dtype": "float32"}
    held = {
        "position": {"step": step, "epoch": step // 100, "batch": step % 100},
        "state": {"optimizer": "Adam", "variables": [{**variable, "names": names}]},
        "data": {"source": "arrays", "num_examples": 64},
        "states": {"EarlyStopping": {"wait": 1}, training_item.RANDOM_GENERATORS: {}},
        "versions": {"keras": "3.15.1"},
        "logs": {"batch": metrics or {}},
        **training,
    }
    arrays = {
        "model": dict.fromkeys(names, weights),
        "callbacks": {"csv": np.arange(4, dtype="u1")},
    }
    return Content(step, step // 100, step % 100, arrays, held, 4, "finger", metrics)


@contextmanager
def _training_into(run: Run) -> Iterator[int]:
    """Hold the lock of a run in another process, and yield its pid."""
    code = (
        "import sys, time; from distrib.storage.locate import locate;"
        "from distrib.checkpoint.directory import CheckpointDirectory;"
        "CheckpointDirectory(locate(sys.argv[1], 'd')).lock(); print('locked', flush=True);"
        "time.sleep(60)"
    )
    command = [sys.executable, "-P", "-c", code, run.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "locked\n"
            yield holder.pid
        finally:
            holder.kill()


@pytest.fixture
def memory_url() -> Iterator[str]:
    """URL of a run in fsspec's memory."""
    yield f"memory://{secrets.token_hex(4)}/run"
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """A run without checkpoints, on the local disk and in fsspec's memory."""
    local = request.param == "local"
    return Run(str(tmp_path / "run") if local else request.getfixturevalue("memory_url"))


@pytest.fixture
def make_run() -> Callable[[str], Run]:
    """Makes a run in a directory, given by its URL."""
    return Run


@pytest.fixture
def local_run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


@pytest.fixture
def training_into() -> Callable[[Run], Any]:
    """Keeps a training process in the directory of a run, and yields its pid."""
    return _training_into


@pytest.fixture
def checkpoints(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `distrib checkpoints` with arguments."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = main(["checkpoints", *map(str, arguments)])
        return Result(code, *capsys.readouterr())

    return call
