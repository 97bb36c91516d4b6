"""The checkpoints of one run: which there are, which is the newest sound one, which may go.

    <directory>/checkpoints/<step>/           a checkpoint, if it holds a manifest
    <directory>/checkpoints/<step>.damaged    one that failed its checksums, kept for a person

One process at a time may write here; a lock that the kernel drops when its holder dies makes a
second one fail with a clear message instead of mixing two runs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from distrib.checkpoint import manifest
from distrib.errors import ConfigurationError, NoLoadableCheckpointError
from distrib.store import fsync

T = TypeVar("T")

_LOCK = ".lock"
_DAMAGED = ".damaged"
_locks: dict[Path, int] = {}


class CheckpointDirectory:
    """The folder `<directory>/checkpoints` of a run.

    Args:
        directory: Absolute local path; made when it is first written to.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "checkpoints"

    def lock(self) -> None:
        """Become the only process that writes here, until `unlock` or the process's end.

        Raises:
            ConfigurationError: If another process holds the lock, or the folder cannot be made.
        """
        if self.path in _locks:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigurationError(
                f"`directory`: cannot write to {self.path}: {error.strerror}. "
                "Give a directory that this user can create and write."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise ConfigurationError(
                f"Another process (pid {holder}) is training into {self.path}. Stop it first, or "
                "give this run its own `directory`."
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        _locks[self.path] = descriptor

    def unlock(self) -> None:
        """Let other processes write here."""
        descriptor = _locks.pop(self.path, None)
        if descriptor is not None:
            os.close(descriptor)

    def step_path(self, step: int) -> Path:
        """Where the checkpoint of `step` stands."""
        return self.path / str(step)

    def steps(self) -> list[int]:
        """Steps of all committed checkpoints, oldest first; not verified."""
        if not self.path.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in self.path.iterdir()
            if path.name.isdecimal() and manifest.is_committed(path)
        )

    def load_newest(self, load: Callable[[Path], T]) -> T | None:
        """Load the newest checkpoint whose bytes are all as committed.

        A damaged one is renamed, never deleted, with a warning that names the file, and the one
        before is taken.

        Args:
            load: Reads a verified checkpoint's folder.

        Returns:
            What `load` returned, or `None` if the run has no checkpoint.

        Raises:
            NoLoadableCheckpointError: If there are checkpoints but all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.step_path(step)
            try:
                manifest.verify(path)
            except manifest.DamagedCheckpointError as error:
                aside = self._set_aside(path)
                warnings.warn(
                    f"Checkpoint {step} is damaged: {error}. It was set aside as {aside}; trying "
                    "the one before.",
                    stacklevel=2,
                )
                continue
            return load(path)
        if steps or self._damaged():
            raise NoLoadableCheckpointError(
                f"None of the checkpoints in {self.path} can be loaded: all are damaged (see the "
                f"folders *{_DAMAGED}). Restore one from a copy, or remove {self.path} to train "
                "from the beginning."
            )
        return None

    def collect_leftovers(self) -> None:
        """Remove what writers left that died before they committed; call it under the lock."""
        for path in self.path.iterdir():
            interrupted = ".orbax-checkpoint-tmp" in path.name or (
                path.name.isdecimal() and not manifest.is_committed(path)
            )
            if interrupted:
                remove_folder(path)

    def prune(self, keep_last: int | None) -> None:
        """Remove all but the newest checkpoints; call it after a commit.

        A folder that cannot be removed is reported and tried again after the next save.

        Args:
            keep_last: How many to keep; `None` keeps all.
        """
        if keep_last is None:
            return
        for step in self.steps()[:-keep_last]:
            try:
                remove_folder(self.step_path(step))
            except OSError as error:
                warnings.warn(
                    f"Could not remove the old checkpoint {self.step_path(step)}: {error}. "
                    "It will be tried again after the next save.",
                    stacklevel=2,
                )

    def delete(self) -> None:
        """Remove all checkpoints of the run, damaged ones included."""
        self.unlock()
        shutil.rmtree(self.path)

    def _damaged(self) -> bool:
        return self.path.is_dir() and any(_DAMAGED in path.name for path in self.path.iterdir())

    def _set_aside(self, path: Path) -> Path:
        aside = path.with_name(path.name + _DAMAGED)
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}{_DAMAGED}-{number}")
        path.rename(aside)
        fsync(path.parent)
        return aside


def remove_folder(path: Path) -> None:
    """Remove a checkpoint's folder, its manifest first, so that no half of it ever counts."""
    (path / manifest.NAME).unlink(missing_ok=True)
    shutil.rmtree(path)
