"""Writes checkpoints in the background, one at a time.

The step loop hands over host copies and goes on. What goes wrong in the background is raised in
the step loop by the next call here, so nothing is lost in a log that nobody reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib.checkpoint import arrays, manifest
from distrib.checkpoint.directory import CheckpointDirectory, remove_folder
from distrib.errors import CheckpointError

_open: dict[Path, Saver] = {}


@dataclass(frozen=True)
class Content:
    """Everything that one checkpoint holds.

    Attributes:
        step: Batches trained since the run began.
        epoch: Epoch to go on with.
        batch: Batches of that epoch that are done.
        arrays: By group and name, in host memory; must not change until the save is done.
        training: JSON-able.
    """

    step: int
    epoch: int
    batch: int
    arrays: arrays.ArrayGroups
    training: Mapping[str, Any]


class Saver:
    """Saves into one directory from a background thread.

    An earlier saver of this process for the same directory, left behind by a `fit` that raised, is
    closed first; what it failed with has been raised or concerns nobody any more.

    Args:
        directory: Locked by this process.
        keep_last: How many checkpoints to keep; `None` keeps all.
    """

    def __init__(self, directory: CheckpointDirectory, keep_last: int | None) -> None:
        self._directory = directory
        self._keep_last = keep_last
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="distrib-saver")
        self._pending: Future[None] | None = None
        if (abandoned := _open.pop(directory.path, None)) is not None:
            abandoned._executor.shutdown()
        _open[directory.path] = self

    @property
    def idle(self) -> bool:
        """Whether a save could begin at once. Raises what the last one failed with."""
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is None

    def save(self, content: Content) -> None:
        """Begin a save; waits for the one before if that still runs."""
        self.wait()
        self._pending = self._executor.submit(self._save, content)

    def wait(self) -> None:
        """Return when the save in flight is committed.

        Raises:
            CheckpointError: If it failed. Checkpoints committed before are intact.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the save in flight and end the thread."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            _open.pop(self._directory.path, None)

    def _save(self, content: Content) -> None:
        path = self._directory.step_path(content.step)
        try:
            if path.exists():  # Left by a save that failed in this process.
                remove_folder(path)
            arrays.write(path, content.arrays, content.training)
            manifest.commit(path, content.step, content.epoch, content.batch)
        except Exception as error:
            raise self._explain(content.step, error) from error
        self._directory.prune(self._keep_last)

    def _explain(self, step: int, error: Exception) -> CheckpointError:
        self._directory.collect_leftovers()
        steps = self._directory.steps()
        intact = f"The checkpoint of step {steps[-1]} is intact" if steps else "There is none yet"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return CheckpointError(
            f"Could not write the checkpoint of step {step} to {self._directory.path}: {reason}. "
            f"{intact}; free space or mend access and start the same command again."
        )
