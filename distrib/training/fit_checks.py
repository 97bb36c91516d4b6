"""What a `fit` has to be like to be resumed exactly, found out before it trains."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from distrib.errors import ConfigurationError
from distrib.save_policy.schedule import SaveSchedule
from distrib.training.fit_call import FitCall

_FORGETFUL = {
    "CSVLogger",
    "EarlyStopping",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "SwapEMAWeights",
    "TensorBoard",
}


def check_call(call: FitCall, schedule: SaveSchedule) -> None:
    """Refuse a `fit` whose saves could not be resumed.

    Raises:
        ConfigurationError: Names the argument and what to pass instead.
    """
    dataset, steps = call.dataset, call.steps_per_epoch
    if dataset is None and schedule.within_epochs:
        raise ConfigurationError(
            "`save_freq` in steps or time needs data that can be resumed in the middle of an "
            f"epoch, but `fit` was given {type(call.data).__name__}. Pass "
            "`cluster.dataset(...)`, or use save_freq='epoch'."
        )
    if dataset is not None and dataset.endless and steps is None:
        raise ConfigurationError("A repeated dataset has no end: pass `steps_per_epoch`.")
    if dataset is None or dataset.endless or steps in (None, dataset.num_batches):
        return
    raise ConfigurationError(
        f"`steps_per_epoch={steps}` differs from the dataset's {dataset.num_batches} batches. "
        "Pass `dataset.repeat()`, which goes on through the data from epoch to epoch, or leave "
        "`steps_per_epoch` out."
    )


def warn_of_forgetful(callbacks: Sequence[Any]) -> None:
    """Name Keras's own callbacks in the list that have a twin here which survives a restart."""
    for callback in callbacks:
        kind = type(callback)
        if kind.__module__.startswith("keras.") and kind.__name__ in _FORGETFUL:
            warnings.warn(
                f"keras.callbacks.{kind.__name__} forgets its state at a restart; import "
                f"{kind.__name__} from distrib.callbacks to resume exactly.",
                stacklevel=2,
            )
