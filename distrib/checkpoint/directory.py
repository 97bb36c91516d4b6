"""The checkpoints of one run: which there are, which is the newest sound one, which may go.

    <directory>/checkpoints/<step>/           a checkpoint, if it holds a manifest
    <directory>/checkpoints/<step>.damaged    one that failed its checksums, kept for a person
    <directory>/checkpoints/attempts/         who has worked here, see `attempts.py`

On the local disk a lock that the kernel drops when its holder dies refuses a second process of the
same machine at once. Everywhere, an older attempt that is still alive is fenced off (`commit.py`).
"""

from __future__ import annotations

import fcntl
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from distrib.checkpoint import attempts, commit
from distrib.checkpoint.attempts import Attempt, Commit, Entry
from distrib.checkpoint.manifest import DamagedCheckpointError, Manifest
from distrib.checkpoint.retention import RetentionPolicy
from distrib.checkpoint.stored import StoredCheckpoint
from distrib.checkpoint.transfer import WORKERS, each
from distrib.environment import UNSUPERVISED, Supervision
from distrib.errors import ConfigurationError, NoLoadableCheckpointError
from distrib.heartbeat import heartbeat
from distrib.log import log
from distrib.storage.location import Location, describe_error

T = TypeVar("T")

_LOCK = ".lock"
_LOOK_SECONDS = 0.5
_locks: dict[Path, int] = {}


class CheckpointDirectory:
    """The folder `<directory>/checkpoints` of a run.

    Args:
        directory: Of the run; made when it is first written to.
        cache: Local folder for copies of the newest checkpoint's files; `None` for none.
    """

    def __init__(self, directory: Location, cache: Path | None = None) -> None:
        self.location = directory / "checkpoints"
        self.cache = cache

    def lock(self, patience: float = 0.0) -> None:
        """Become the only process of this machine that writes here, until `unlock` or its end.

        Does nothing on an object store, where attempts are fenced off.

        Args:
            patience: Seconds to wait for another process that holds the lock.

        Raises:
            ConfigurationError: If it still does, or the folder cannot be made.
        """
        path = self.location.local
        if path is None or path in _locks:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigurationError(
                f"`directory`: cannot write to {path}: {error.strerror}. "
                "Give a directory that this user can create and write."
            ) from error
        if not _try_lock(descriptor) and not _wait_for_lock(descriptor, path, patience):
            holder = _holder(descriptor)
            os.close(descriptor)
            raise ConfigurationError(
                f"Another process (pid {holder}) is training into {path}. Stop it first, or "
                "give this run its own `directory`."
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        _locks[path] = descriptor

    def unlock(self) -> None:
        """Let other processes of this machine write here."""
        descriptor = _locks.pop(self.location.local, None) if self.location.local else None
        if descriptor is not None:
            os.close(descriptor)

    def begin(
        self, world_size: int, start: int | None = None, supervisor: Supervision = UNSUPERVISED
    ) -> Attempt:
        """Take the next attempt's number, which fences off all attempts before.

        Args:
            world_size: Number of processes.
            start: Step that the attempt begins with; `None` if it trains nothing.
            supervisor: What the job's supervisor says.
        """
        return attempts.begin(self.location, world_size, self._known, start, supervisor)

    def steps(self) -> list[int]:
        """Steps of all checkpoints that count, oldest first; not verified."""
        return [
            checkpoint.manifest.step for checkpoint in self.checkpoints() if not checkpoint.late
        ]

    def checkpoints(
        self, unreadable: Callable[[int, DamagedCheckpointError], object] = lambda step, error: None
    ) -> list[StoredCheckpoint]:
        """Read the manifests of all committed checkpoints, oldest first, late ones included.

        Args:
            unreadable: Called with the step of each manifest that is damaged, and the error.
        """
        newest = attempts.newest(self.location)
        found = []
        for step, manifest in self._manifests(newest):
            if isinstance(manifest, DamagedCheckpointError):
                unreadable(step, manifest)
                continue
            late = newest is not None and not newest.counts(Commit(step, manifest.attempt))
            found.append(self._stored(manifest, step, late))
        return found

    def load_newest(self, load: Callable[[StoredCheckpoint], T]) -> T | None:
        """Load the newest checkpoint whose bytes are all as committed.

        A damaged one is set aside, never deleted, with a warning that names the file, and the one
        before is taken. Late ones come last.

        Args:
            load: Reads a checkpoint; raises `DamagedCheckpointError` if it is damaged.

        Returns:
            What `load` returned, or `None` if the run has no checkpoint.

        Raises:
            NoLoadableCheckpointError: If there are checkpoints but all are damaged.
        """
        broken: list[int] = []

        def unreadable(step: int, error: DamagedCheckpointError) -> None:
            broken.append(step)
            self._set_aside(step, error)

        checkpoints = self.checkpoints(unreadable)
        for checkpoint in sorted(checkpoints, key=_preference, reverse=True):
            if checkpoint.late:
                _warn_of_late(checkpoint)
            try:
                return load(checkpoint)
            except DamagedCheckpointError as error:
                self._set_aside(checkpoint.manifest.step, error)
        if checkpoints or broken or commit.damaged(self.location):
            raise NoLoadableCheckpointError(
                f"None of the checkpoints in {self.location} can be loaded: all are damaged (see "
                "what was set aside there). Restore one from a copy, or remove "
                f"{self.location} to train from the beginning."
            )
        return None

    def remove_orphans(self, attempt: int) -> None:
        """Remove what attempts before this number left uncommitted."""
        for folder in commit.leftovers(self.location, attempt):
            try:
                folder.remove_tree()
            except OSError as error:
                _warn_of_failed_removal(folder, error)

    def prune(self, policy: RetentionPolicy | None, own: Attempt) -> None:
        """Remove the checkpoints that no policy keeps; call it after a commit.

        What cannot be removed is reported and tried again after the next save.

        Args:
            policy: Says which to keep; `None` keeps all.
            own: The attempt that has committed.
        """
        if policy is None:
            return
        manifests = [manifest for _, manifest in self._counting(own.entry)]
        keep = policy.keep(manifests)
        gone = {m.step for m in manifests[:-1] if m.step not in keep and self._remove(m.step)}
        own.forget(gone)

    def delete(self) -> None:
        """Remove all checkpoints of the run, damaged ones included."""
        self.unlock()
        self.location.remove_tree()

    def _remove(self, step: int) -> bool:
        try:
            commit.remove(self.location, step)
        except OSError as error:
            _warn_of_failed_removal(self.location / str(step), error)
            return False
        return True

    def _known(self, newest: Entry | None) -> tuple[Commit, ...]:
        return tuple(Commit(step, manifest.attempt) for step, manifest in self._counting(newest))

    def _counting(self, newest: Entry | None) -> list[tuple[int, Manifest]]:
        """The manifests that can be read and count, given the newest attempt's entry."""
        return [
            (step, manifest)
            for step, manifest in self._manifests(newest)
            if isinstance(manifest, Manifest)
            and (newest is None or newest.counts(Commit(step, manifest.attempt)))
        ]

    def _manifests(
        self, newest: Entry | None
    ) -> list[tuple[int, Manifest | DamagedCheckpointError]]:
        """All manifests, by step: those that a listing shows and those that the ledger tells of."""
        listed = {int(name) for name in self.location.names() if name.isdecimal()}
        told = {c.step for c in newest.commits} if newest is not None else set()
        steps = sorted(listed | told)
        found = each(self._read_manifest, steps, WORKERS)
        return [(step, m) for step, m in zip(steps, found, strict=True) if m is not None]

    def _read_manifest(self, step: int) -> Manifest | DamagedCheckpointError | None:
        try:
            return commit.read(self.location, step)
        except FileNotFoundError:
            return None
        except DamagedCheckpointError as error:
            return error

    def _stored(self, manifest: Manifest, step: int, late: bool) -> StoredCheckpoint:
        cache = self.cache and self.cache / cache_name(step, manifest.attempt)
        return StoredCheckpoint(self.location / str(step), manifest, cache, late)

    def _set_aside(self, step: int, error: DamagedCheckpointError) -> None:
        aside = commit.set_aside(self.location, step, str(error))
        warnings.warn(
            f"Checkpoint {step} is damaged: {error}. It was set aside as {aside}; trying "
            "the one before.",
            stacklevel=4,
        )


def cache_name(step: int, attempt: int) -> str:
    """Return the name of the folder, in a cache, for copies of a checkpoint's files."""
    return f"{step}.attempt-{attempt}"


def _preference(checkpoint: StoredCheckpoint) -> tuple[bool, int]:
    return not checkpoint.late, checkpoint.manifest.step


def _warn_of_late(checkpoint: StoredCheckpoint) -> None:
    warnings.warn(
        f"{checkpoint.place} is not among the checkpoints that the newest attempt knew: attempt "
        f"{checkpoint.manifest.attempt} committed it after a newer one had begun, or it was put "
        "there by hand. Nothing else can be loaded, so it is used.",
        stacklevel=3,
    )


def _warn_of_failed_removal(place: Location, error: OSError) -> None:
    warnings.warn(
        f"Could not remove {place}: {describe_error(error, place)}. It will be tried again later.",
        stacklevel=3,
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(descriptor: int, path: Path, patience: float) -> bool:
    deadline = time.monotonic() + patience
    if patience:
        log.info(
            f"process {_holder(descriptor)} still holds {path}; waiting {patience:g} s at most."
        )
    while time.monotonic() < deadline:
        heartbeat.beat()
        time.sleep(_LOOK_SECONDS)
        if _try_lock(descriptor):
            return True
    return False


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
