"""The checkpoints of one run: list them, load the newest intact one, remove old ones.

    <directory>/checkpoints/<step>/           a checkpoint, if it has a manifest
    <directory>/checkpoints/<step>.damaged    a quarantined checkpoint, which failed its checksums
    <directory>/checkpoints/attempts/         the ledger of attempts, see `attempts.py`

On the local disk a lock rejects a second process of the same machine at once (`run_lock.py`). An
older attempt that is still alive anywhere is fenced off (`commit.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from distrib.checkpoint import attempts, commit, run_lock
from distrib.checkpoint.attempts import Attempt, Commit, Entry
from distrib.checkpoint.manifest import DamagedCheckpointError, Manifest
from distrib.checkpoint.retention import RetentionPolicy
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.checkpoint.transfer import WORKERS, parallel_map
from distrib.environment import UNSUPERVISED, Supervision
from distrib.errors import NoLoadableCheckpointError
from distrib.storage.location import Location, describe_error

T = TypeVar("T")


class CheckpointDirectory:
    """The folder `<directory>/checkpoints` of a run.

    Args:
        directory: Of the run; created by the first write.
        cache: Local folder for copies of the newest checkpoint's files. Defaults to `None`, for no
            copies.
    """

    def __init__(self, directory: Location, cache: Path | None = None) -> None:
        self.location = directory / "checkpoints"
        self.cache = cache
        self._locked = False

    def lock(self, timeout: float = 0.0) -> None:
        """Make this object the only writer of its machine, until `unlock` or the process's end.

        Does nothing if it is already, and on an object store, where older attempts are fenced off.

        Args:
            timeout: Seconds to wait for another process that holds the lock. Defaults to 0.

        Raises:
            ConfigurationError: If another process, or another `fit` of this one, still holds the
                lock, or the folder cannot be created.
        """
        if self.location.local is not None and not self._locked:
            run_lock.acquire(self.location.local, timeout)
            self._locked = True

    def unlock(self) -> None:
        """Let others on this machine write, if this object holds the lock."""
        if self.location.local is not None and self._locked:
            self._locked = False
            run_lock.release(self.location.local)

    def begin(
        self, world_size: int, start: int | None = None, supervisor: Supervision = UNSUPERVISED
    ) -> Attempt:
        """Begin the next attempt, which fences off all earlier ones.

        Args:
            world_size: Number of processes.
            start: Step that the attempt begins with. Defaults to `None`, for no training.
            supervisor: State of the job's supervisor. Defaults to none.
        """
        return attempts.begin(self.location, world_size, self._known, start, supervisor)

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints that are not late, oldest first; not verified."""
        return [
            checkpoint.manifest.step for checkpoint in self.checkpoints() if not checkpoint.late
        ]

    def checkpoints(
        self, on_damaged: Callable[[int, DamagedCheckpointError], object] = lambda step, error: None
    ) -> list[StoredCheckpoint]:
        """Return all committed checkpoints, including late ones, oldest first; not verified.

        Args:
            on_damaged: Called with the step of each damaged manifest, and the error.
        """
        newest = attempts.newest(self.location)
        found = []
        for step, manifest in self._manifests(newest):
            if isinstance(manifest, DamagedCheckpointError):
                on_damaged(step, manifest)
                continue
            late = newest is not None and not newest.counts(Commit(step, manifest.attempt))
            found.append(self._stored(manifest, step, late))
        return found

    def load_newest(
        self, load: Callable[[StoredCheckpoint], T], read_only: bool = False
    ) -> T | None:
        """Load the newest intact checkpoint.

        A damaged checkpoint is quarantined, never deleted, with a warning that names the file; then
        the one before is loaded. Late ones come last.

        Args:
            load: Reads a checkpoint; raises `DamagedCheckpointError` if it is damaged.
            read_only: Whether to leave damaged checkpoints where they are. Defaults to `False`.

        Returns:
            The result of `load`, or `None` if the run has no checkpoint.

        Raises:
            NoLoadableCheckpointError: If there are checkpoints but all are damaged.
        """
        damaged: list[int] = []

        def on_damaged(step: int, error: DamagedCheckpointError) -> None:
            damaged.append(step)
            if read_only:
                _warn_of_damage(step, error, "Trying the one before.")
            else:
                self._quarantine(step, error)

        checkpoints = self.checkpoints(on_damaged)
        for checkpoint in sorted(checkpoints, key=_preference, reverse=True):
            if checkpoint.late:
                _warn_of_late(checkpoint)
            try:
                return load(checkpoint)
            except DamagedCheckpointError as error:
                on_damaged(checkpoint.manifest.step, error)
        if checkpoints or damaged or commit.quarantined(self.location):
            raise NoLoadableCheckpointError(
                f"None of the checkpoints in {self.location} can be loaded: all are damaged. "
                "Restore one from a copy."
                if read_only
                else f"None of the checkpoints in {self.location} can be loaded: all are damaged, "
                "and quarantined there. Restore one from a copy, or remove "
                f"{self.location} to train from the beginning."
            )
        return None

    def remove_orphans(self, attempt: int) -> None:
        """Remove the orphaned folders of attempts before the given number."""
        for folder in commit.orphaned_folders(self.location, attempt):
            try:
                folder.remove_tree()
            except OSError as error:
                _warn_of_failed_removal(folder, error)

    def prune(self, policy: RetentionPolicy | None, own: Attempt) -> None:
        """Remove the checkpoints that the policy does not keep, after a commit.

        A removal that fails is reported, and tried again after the next save.

        Args:
            policy: Which to keep; `None` for all.
            own: The attempt that has committed.
        """
        if policy is None:
            return
        manifests = [manifest for _, manifest in self._counting(own.entry)]
        keep = policy.keep(manifests)
        removed = {m.step for m in manifests[:-1] if m.step not in keep and self._remove(m.step)}
        own.drop(removed)

    def delete(self) -> None:
        """Remove all checkpoints of the run, including quarantined ones."""
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
        """Return step and manifest of those that are intact and not late.

        Args:
            newest: Ledger entry of the newest attempt.
        """
        return [
            (step, manifest)
            for step, manifest in self._manifests(newest)
            if isinstance(manifest, Manifest)
            and (newest is None or newest.counts(Commit(step, manifest.attempt)))
        ]

    def _manifests(
        self, newest: Entry | None
    ) -> list[tuple[int, Manifest | DamagedCheckpointError]]:
        """Return all manifests by step, both from the listing and from the ledger."""
        listed = {int(name) for name in self.location.names() if name.isdecimal()}
        recorded = {c.step for c in newest.commits} if newest is not None else set()
        steps = sorted(listed | recorded)
        found = parallel_map(self._read_manifest, steps, WORKERS)
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

    def _quarantine(self, step: int, error: DamagedCheckpointError) -> None:
        quarantined = commit.quarantine(self.location, step, str(error))
        _warn_of_damage(step, error, f"It was quarantined as {quarantined}; trying the one before.")


def load_from(location: Location, load: Callable[[StoredCheckpoint], T]) -> T | None:
    """Load a checkpoint that another run has written, and change nothing there.

    Args:
        location: The other run's directory, of which the newest intact checkpoint is loaded; the
            folder `checkpoints` in it; or the folder of one checkpoint.
        load: Reads a checkpoint; raises `DamagedCheckpointError` if it is damaged.

    Returns:
        The result of `load`, or `None` if there is no checkpoint.

    Raises:
        NoLoadableCheckpointError: If there are checkpoints but all are damaged.
    """
    if location.name.isdecimal():
        try:
            manifest = commit.read(location.parent, int(location.name))
            return load(StoredCheckpoint(location, manifest))
        except FileNotFoundError:
            pass  # A run's directory, such as "runs/17".
        except DamagedCheckpointError as error:
            raise NoLoadableCheckpointError(f"{location} is damaged: {error}.") from error
    folder = location.parent if location.name == "checkpoints" else location
    return CheckpointDirectory(folder).load_newest(load, read_only=True)


def cache_name(step: int, attempt: int) -> str:
    """Return the name of a cache's folder for copies of a checkpoint's files."""
    return f"{step}.attempt-{attempt}"


def _preference(checkpoint: StoredCheckpoint) -> tuple[bool, int]:
    return not checkpoint.late, checkpoint.manifest.step


def _warn_of_damage(step: int, error: DamagedCheckpointError, remedy: str) -> None:
    warnings.warn(f"Checkpoint {step} is damaged: {error}. {remedy}", stacklevel=5)


def _warn_of_late(checkpoint: StoredCheckpoint) -> None:
    warnings.warn(
        f"{checkpoint.location} is not among the checkpoints that the newest attempt knew: attempt "
        f"{checkpoint.manifest.attempt} committed it after a newer one had begun, or it was copied "
        "there by hand. No other checkpoint can be loaded, so it is used.",
        stacklevel=3,
    )


def _warn_of_failed_removal(location: Location, error: OSError) -> None:
    warnings.warn(
        f"Could not remove {location}: {describe_error(error, location)}. distrib tries "
        "again later.",
        stacklevel=3,
    )
