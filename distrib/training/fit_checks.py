"""What a `fit` has to be like to be resumed exactly, and to work on several ranks.

Found out before it trains.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from distrib.cluster import current
from distrib.errors import ConfigurationError
from distrib.gradients.optimizer import reduction_of
from distrib.keras_compat.layers import layers_of
from distrib.keras_compat.optimizers import updates_in_a_condition
from distrib.save_policy.schedule import SaveSchedule
from distrib.state.callback_state import not_resumable_base
from distrib.state.variables import optimizers_of
from distrib.training.derived_data import refuse_derived
from distrib.training.fit_call import FitCall


def check_call(call: FitCall, schedule: SaveSchedule) -> None:
    """Refuse a `fit` whose saves could not be resumed.

    Raises:
        ConfigurationError: Names the argument and what to pass instead.
    """
    refuse_derived(call)
    dataset, steps = call.dataset, call.steps_per_epoch
    if dataset is not None and not dataset.within_epochs and schedule.within_epochs:
        raise ConfigurationError(
            "`save_freq` in steps or time needs data that can be resumed in the middle of an "
            "epoch. Pass `resume='replay'` or `save_freq='epoch'` to BackupAndRestore."
        )
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
        "Pass `dataset.repeat()`, which continues through the data across epochs, or leave "
        "`steps_per_epoch` out."
    )


def warn_about_mixed_parts(call: FitCall) -> None:
    """Warn, on the chief, if what is trained on in one epoch is validated on in another."""
    train, validation = call.dataset, call.validation_dataset
    if train is None or validation is None or not current().is_chief:
        return
    if train.exchanges_examples_with(validation):
        warnings.warn(
            "`x` and `validation_data` are parts of one shuffled cluster.dataset, and each epoch "
            "divides its examples anew, so the model is validated on examples that it has been "
            "trained on. Split the examples, before `cluster.dataset`.",
            stacklevel=2,
        )


def warn_about_unsaved_callbacks(callbacks: Sequence[Any]) -> None:
    """Name, on the chief, the callbacks of Keras's classes that only a twin here can resume."""
    if not current().is_chief:
        return
    for callback in callbacks:
        base = not_resumable_base(callback)
        if base is None:
            continue
        kind, twin = type(callback), f"distrib.callbacks.{base.__name__}"
        if kind is base:
            advice = f"import {base.__name__} from distrib.callbacks"
        else:
            advice = f"derive it from {twin}"
        warnings.warn(
            f"{_name_of(kind)} forgets its state at a restart; {advice} to resume exactly.",
            stacklevel=2,
        )


def _name_of(kind: type) -> str:
    keras_defines_it = kind.__module__.startswith("keras.")
    return f"keras.callbacks.{kind.__name__}" if keras_defines_it else kind.__name__


def check_ranks(call: FitCall) -> None:
    """Refuse, before anything is built, what would hang or go wrong on several ranks.

    Raises:
        ConfigurationError: Names the argument and what to pass instead.
    """
    model, size = call.model, current().size
    if not any(reduction_of(optimizer) for optimizer in optimizers_of(model)):
        raise ConfigurationError(
            f"The optimizer of {model.name!r} does not reduce gradients, so the {size} ranks would "
            "train models of their own. Compile with `optimizer=cluster.optimizer(...)`."
        )
    if call.dataset is not None and not call.dataset.every_rank_has_examples:
        raise ConfigurationError(
            f"The last batch of an epoch has fewer examples than there are ranks ({size}). Pass "
            "`drop_remainder=True` or `shuffle=True` to `cluster.dataset`, or another `batch_size`."
        )
    for layer in layers_of(model):
        if getattr(layer, "synchronized", False) and current().kind == "horovod":
            warnings.warn(
                f"{layer.name!r}: `synchronized=True` works under tf.distribute only; here each "
                "rank normalizes its own piece of the batch.",
                stacklevel=2,
            )


def check_replicas(model: Any) -> None:
    """Refuse, before anything is built, what Keras cannot do under `MirroredStrategy`.

    Its first train step would raise an error about `merge_call`.

    Args:
        model: A compiled `keras.Model`.

    Raises:
        ConfigurationError: Names the argument.
    """
    mirrored = isinstance(model.distribute_strategy, tf.distribute.MirroredStrategy)
    if not mirrored or model.jit_compile:  # XLA compiles without `merge_call`.
        return
    for optimizer in optimizers_of(model):
        for argument in updates_in_a_condition(optimizer):
            raise ConfigurationError(
                f"`{argument}` of the optimizer does not work under MirroredStrategy: Keras "
                "cannot update replicas in some steps only. Leave it out, or start one process "
                "for each GPU (`distrib run`)."
            )
