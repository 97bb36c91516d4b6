"""The `fit` in progress: what Keras does not tell its callbacks.

Which data, how many epochs, who else is in the list is read from the local variables of the `fit`
that is running; Keras 3.12 to 3.15 name them alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from distrib.data.dataset import Dataset


@dataclass(frozen=True)
class FitCall:
    """The arguments of the `fit` in progress, as far as resuming needs them.

    Attributes:
        data: The training data, as given.
        validation_data: Its `x`, as given; `None` without validation.
        initial_epoch: As given.
        epochs: As given.
        steps_per_epoch: As given.
        iterator: Keras's `EpochIterator` over the training data.
        code: Of the running `fit`.
    """

    data: Any
    validation_data: Any
    initial_epoch: int
    epochs: int
    steps_per_epoch: int | None
    iterator: Any
    code: CodeType

    @property
    def dataset(self) -> Dataset | None:
        """The training data if it can be resumed in the middle of an epoch."""
        return self.data if isinstance(self.data, Dataset) else None

    @property
    def batches(self) -> int | None:
        """Batches in an epoch of this fit; `None` if the data do not tell."""
        if self.dataset is None:
            return self.steps_per_epoch
        return self.steps_per_epoch or self.dataset.num_batches

    @property
    def element_spec(self) -> Any:
        """Structure of the training batches as the train step gets them."""
        return self.iterator.data_adapter.get_tf_dataset().element_spec

    def drop_iterator(self) -> None:
        """Make the next epoch begin a new pass over the data.

        With `steps_per_epoch` Keras goes on with the iterator of the epoch before, which has run
        out if that epoch was resumed, unless the data are endless.
        """
        if self.dataset is not None and not self.dataset.endless:
            self.iterator._current_iterator = None


def frames() -> Iterator[FrameType]:
    """Yield the frames of the stack, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def fit_in_progress() -> FitCall | None:
    """Return what the running `fit` was called with; `None` outside of `fit`."""
    for frame in frames():
        names = frame.f_locals
        if frame.f_code.co_name == "fit" and "epoch_iterator" in names:
            return FitCall(
                data=names["x"],
                validation_data=names.get("val_x"),
                initial_epoch=names["initial_epoch"],
                epochs=names["epochs"],
                steps_per_epoch=names["epoch_iterator"].steps_per_epoch,
                iterator=names["epoch_iterator"],
                code=frame.f_code,
            )
    return None
