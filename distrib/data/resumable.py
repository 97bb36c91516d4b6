"""`ResumableDataset`: what every kind of training data that can be resumed has in common.

`Dataset` is the one that users make. Whatever else `fit` is given becomes one of the others, and
`training/` treats all of them alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import tensorflow as tf


class ResumableDataset(tf.data.Dataset, ABC):
    """Batches that this process trains on, which can be produced from a given step on.

    A kind whose position is more than (epoch, step) also has `get_state` and `set_state`, like a
    callback. Its state is saved with every checkpoint, on each rank its own, and restored before
    `seek`; if a run goes on in the middle of an epoch, once more before the first batch is drawn.

    Attributes:
        endless: Whether a pass continues with the next epoch instead of ending.
        within_epochs: Whether a run can go on in the middle of an epoch.
        restarts_epoch: Whether `set_state` found that an epoch in progress has to begin again.
        is_shared: Whether the state is the same on all ranks, because all of them draw the same
            batches and train on rows of these.
        acts_in_validation: Whether a validation may change the state.
    """

    endless: bool
    within_epochs: bool = True
    restarts_epoch: bool = False
    is_shared: bool = False
    acts_in_validation: bool = False

    @property
    @abstractmethod
    def num_batches(self) -> int | None:
        """Number of global batches in a full epoch; `None` until that is known."""

    @property
    @abstractmethod
    def every_rank_has_examples(self) -> bool:
        """Whether every rank has examples of every batch; the same value on all ranks."""

    @abstractmethod
    def share(self, step: int) -> float:
        """Return the weight of this process's mean over a batch in the mean over all processes."""

    @abstractmethod
    def seek(self, epoch: int, step: int) -> None:
        """Let the next pass start at a step of an epoch."""

    def digest(self) -> str:
        """Return a digest of the batch that comes next; only of data that `is_shared`."""
        raise NotImplementedError

    def exchanges_examples_with(self, other: ResumableDataset) -> bool:
        """Tell whether both are parts of one shuffled dataset, whose examples move between them."""
        return False

    def trained(self, count: int) -> None:
        """Take note that this many more batches have been trained on."""

    def step_of(self, step: int, size: int) -> int:
        """Return the step that goes on after a step of an epoch on another number of processes.

        The same one, for data whose global batches do not depend on that number.

        Args:
            step: Steps of the epoch that were done.
            size: Number of processes that did them.
        """
        return step

    def begin_fit(self) -> None:
        """Prepare for a `fit`. All processes call it together, before its first epoch."""

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for the passes of an epoch. All processes call it together.

        Args:
            epoch: Epoch number. An epoch that is resumed begins a second time.
        """

    def end_epoch(self) -> None:
        """End an epoch, whose last batch is done. All processes call it together, perhaps twice."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return the properties under which equal positions mean equal batches, as JSON values."""
