"""Writes checkpoints in the background, one at a time.

The step loop hands over host copies and goes on. What goes wrong in the background is raised in
the step loop by the next call here, so nothing is lost in a log that nobody reads.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distrib.checkpoint import commit, transfer
from distrib.checkpoint.attempts import Attempt, Commit
from distrib.checkpoint.directory import CheckpointDirectory, cache_name
from distrib.checkpoint.layout import ArrayGroups
from distrib.checkpoint.manifest import Manifest
from distrib.checkpoint.orbax_format import files
from distrib.checkpoint.retention import RetentionPolicy
from distrib.errors import CheckpointError, SupersededError
from distrib.heartbeat import INTERVAL_SECONDS, heartbeat
from distrib.storage.location import Location, describe_error
from distrib.storage.uploads import Pending, uploads

_open: dict[Location, Saver] = {}


@dataclass(frozen=True)
class Content:
    """Everything that one checkpoint holds.

    Attributes:
        step: Batches trained since the run began.
        epoch: Epoch to go on with.
        batch: Batches of that epoch that are done.
        arrays: By group and name, in host memory; must not change until the save is done.
        training: JSON-able.
        world_size: Number of processes.
        fingerprint: Of the model, the optimizer and the data.
        metrics: What Keras reported last.
    """

    step: int
    epoch: int
    batch: int
    arrays: ArrayGroups
    training: Mapping[str, Any]
    world_size: int = 1
    fingerprint: str = ""
    metrics: Mapping[str, float] | None = None


class Saver:
    """Saves into one directory from a background thread.

    An earlier saver of this process for the same directory, left behind by a `fit` that raised, is
    closed first; what it failed with has been raised or concerns nobody any more.

    Args:
        directory: Locked by this process.
        attempt: This process's.
        policy: Which checkpoints to keep; `None` keeps all.

    Attributes:
        write_time: Seconds from the beginning of the last save to its commit.
    """

    def __init__(
        self, directory: CheckpointDirectory, attempt: Attempt, policy: RetentionPolicy | None
    ) -> None:
        self.write_time = 0.0
        self._directory = directory
        self._attempt = attempt
        self._policy = policy
        self._executor = ThreadPoolExecutor(1, "distrib-saver")
        self._pending: Future[None] | None = None
        if (abandoned := _open.pop(directory.location, None)) is not None:
            abandoned._executor.shutdown()
        _open[directory.location] = self

    @property
    def idle(self) -> bool:
        """Whether a save could begin at once. Raises what the last one failed with."""
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is None

    def save(self, content: Content, captured_in: float = 0.0) -> None:
        """Begin a save; waits for the one before if that still runs.

        Args:
            content: What to save.
            captured_in: Seconds that the copy of it took; a part of what the save takes.
        """
        self.wait()
        # Files that callbacks have handed over by now must be there when the checkpoint says so.
        self._pending = self._executor.submit(self._save, content, captured_in, uploads.pending())

    def wait(self) -> None:
        """Return when the save in flight is committed.

        Raises:
            CheckpointError: If it failed. Checkpoints committed before are intact.
            SupersededError: If a newer attempt has begun.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            while not wait([pending], INTERVAL_SECONDS).done:
                heartbeat.beat()
            pending.result()

    def close(self) -> None:
        """Wait for the save in flight and end the thread."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            _open.pop(self._directory.location, None)

    def _save(self, content: Content, captured_in: float, handed_over: Pending) -> None:
        began = time.monotonic()
        checkpoints, number = self._directory.location, self._attempt.number
        try:
            self._attempt.check()
            draft = commit.draft(checkpoints, content.step, number)
            cache = self._directory.cache and self._directory.cache / (
                cache_name(content.step, number)
            )
            manifest = Manifest(
                content.step,
                content.epoch,
                content.batch,
                time.time(),
                transfer.write(files(content.arrays, content.training), draft, cache),
                number,
                content.world_size,
                content.fingerprint,
                content.metrics or {},
                commit.root_of(checkpoints, content.step, number),
            )
            handed_over.wait()
            self._attempt.check()
            commit.publish(checkpoints, manifest)
        except SupersededError:
            raise
        except Exception as error:
            raise self._explain(content.step, error) from error
        self.write_time = time.monotonic() - began
        self._after_commit(content.step, captured_in + self.write_time)

    def _after_commit(self, step: int, save_time: float) -> None:
        number = self._attempt.number
        try:
            self._attempt.committed(Commit(step, number), save_time)
        except OSError as error:
            raise self._explain(step, error, "note in the ledger the") from error
        heartbeat.committed(step)
        self._directory.prune(self._policy, self._attempt)
        if self._directory.cache is not None:
            for folder in self._directory.cache.iterdir():
                if folder.name != cache_name(step, number):
                    shutil.rmtree(folder, ignore_errors=True)

    def _explain(self, step: int, error: Exception, what: str = "write the") -> CheckpointError:
        checkpoints = self._directory.location
        if checkpoints.local is not None:
            # What is wrong is said below, and the next start tries again.
            with suppress(OSError):
                commit.draft(checkpoints, step, self._attempt.number)
        commits = self._attempt.entry.commits
        intact = (
            f"The checkpoint of step {max(commits).step} is intact"
            if commits
            else "There is none yet"
        )
        return CheckpointError(
            f"Could not {what} checkpoint of step {step} to {checkpoints}: "
            f"{describe_error(error, checkpoints)}. {intact}; free space or mend access and start "
            "the same command again."
        )
