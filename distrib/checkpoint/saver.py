"""Writes checkpoints in the background, one at a time.

The step loop passes host copies of the state and continues. An error in the background is raised in
the step loop by its next call here, so an error is more than a line in a log.
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
from distrib.storage.uploads import PendingUploads, uploads

_open_savers: dict[Location, Saver] = {}


@dataclass(frozen=True)
class Content:
    """The content of a checkpoint to save.

    Attributes:
        step: Batches trained since the start of the run.
        epoch: Epoch to resume.
        batch: Number of finished batches of that epoch.
        arrays: By group and name, in host memory; must not change until the save is done.
        training: JSON-serializable.
        world_size: Number of processes. Defaults to 1.
        fingerprint: Of the model, the optimizer and the data.
        metrics: The last logs of Keras.
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
    """Saves checkpoints to one directory from a background thread.

    A saver of this process for the same directory whose `close` was interrupted is closed first,
    without its errors.

    Args:
        directory: Locked by this process.
        attempt: Of this process.
        policy: Which checkpoints to keep; `None` for all.

    Attributes:
        write_time: Seconds from the start of the last save to its commit.
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
        if (abandoned := _open_savers.pop(directory.location, None)) is not None:
            abandoned._executor.shutdown()
        _open_savers[directory.location] = self

    @property
    def busy(self) -> bool:
        """Whether a save is being written at this moment; raises nothing."""
        return self._pending is not None and not self._pending.done()

    @property
    def idle(self) -> bool:
        """Whether no save is in flight. Raises the error of the last one."""
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is None

    def save(self, content: Content, capture_time: float = 0.0) -> None:
        """Begin a save, after the one in flight.

        Args:
            content: To save.
            capture_time: Seconds that the copy of the state took, which are part of the save's
                time. Defaults to 0.
        """
        self.wait()
        # The checkpoint refers to files of callbacks, so their uploads must be done at the commit.
        self._pending = self._executor.submit(self._save, content, capture_time, uploads.pending())

    def wait(self) -> None:
        """Wait until the save in flight is committed.

        Raises:
            CheckpointError: If the save failed. Earlier checkpoints are intact.
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
            _open_savers.pop(self._directory.location, None)

    def _save(self, content: Content, capture_time: float, pending_uploads: PendingUploads) -> None:
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
                commit.data_root(checkpoints, content.step, number),
            )
            pending_uploads.wait()
            self._attempt.check()
            commit.publish(checkpoints, manifest)
        except SupersededError:
            raise
        except Exception as error:
            raise self._failure(content.step, error) from error
        self.write_time = time.monotonic() - began
        self._after_commit(content.step, capture_time + self.write_time)

    def _after_commit(self, step: int, save_time: float) -> None:
        number = self._attempt.number
        try:
            self._attempt.committed(Commit(step, number), save_time)
        except OSError as error:
            raise self._failure(step, error, "record in the ledger the") from error
        heartbeat.committed(step)
        self._directory.prune(self._policy, self._attempt)
        if self._directory.cache is not None:
            for folder in self._directory.cache.iterdir():
                if folder.name != cache_name(step, number):
                    shutil.rmtree(folder, ignore_errors=True)

    def _failure(self, step: int, error: Exception, action: str = "write the") -> CheckpointError:
        checkpoints = self._directory.location
        if checkpoints.local is not None:
            # Remove the draft to free space. If that fails too, the next start tries again.
            with suppress(OSError):
                commit.draft(checkpoints, step, self._attempt.number)
        commits = self._attempt.entry.commits
        intact = (
            f"The checkpoint of step {max(commits).step} is intact"
            if commits
            else "There is none yet"
        )
        return CheckpointError(
            f"Could not {action} checkpoint of step {step} to {checkpoints}: "
            f"{describe_error(error, checkpoints)}. {intact}; free space or restore access and "
            "start the same command again."
        )
