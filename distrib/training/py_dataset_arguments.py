"""A `PyDataset` that `fit` is given, as data that ranks share and that a restart resumes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import keras

from distrib.cluster import current
from distrib.data.order import Shard
from distrib.data.py_dataset import num_batches_of
from distrib.data.py_dataset_order import BatchOrder, EvaluationOrder, steps_of_pass
from distrib.errors import ConfigurationError
from distrib.log import log
from distrib.training.fit_py_dataset import FitPyDataset


def py_dataset_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to change of the arguments of a `fit` for the `PyDataset`s among them.

    Args:
        arguments: All arguments by name, those with defaults included.

    Raises:
        ConfigurationError: Names the argument and what to pass instead.
    """
    x, validation = arguments["x"], arguments["validation_data"]
    changes: dict[str, Any] = {}
    # Keras refuses a `PyDataset` with targets beside it, in its own words.
    alone = arguments["y"] is None and arguments["sample_weight"] is None
    if isinstance(x, keras.utils.PyDataset) and alone:
        changes |= {"x": _for_training(x, arguments), "shuffle": False}
    if isinstance(validation, keras.utils.PyDataset):
        changes["validation_data"] = _for_validation(validation, arguments)
        if current().size > 1:
            changes["validation_steps"] = None  # Each rank has its own number of them.
    return changes


def _for_training(py_dataset: Any, arguments: Mapping[str, Any]) -> FitPyDataset:
    size, name = current().size, type(py_dataset).__name__
    count, steps = num_batches_of(py_dataset), arguments["steps_per_epoch"]
    if count is None and steps is None:
        raise ConfigurationError(f"{name} has no end: pass `steps_per_epoch`.")
    if count is not None:
        steps = _checked_steps(name, count, steps)
    shuffle = bool(arguments["shuffle"]) and count is not None
    order = BatchOrder(count, steps, shuffle, Shard(current().rank, size))
    # As Keras's own order, another one in every run, and after `keras.utils.set_random_seed` the
    # same. Checkpoints hold it.
    seed = random.getrandbits(63) if shuffle else 0
    return FitPyDataset(py_dataset, order, seed, current().collectives)


def _checked_steps(name: str, count: int, steps: int | None) -> int:
    """Return the steps of an epoch, and say what several ranks make of them."""
    size = current().size
    in_pass = steps_of_pass(count, size)
    if current().is_chief and size > 1:
        filled = in_pass * size - count
        rest = (
            f"; so that all ranks have one in the last step, {filled} of them come twice"
            if filled
            else ""
        )
        log.info(
            f"each step trains on {size} batches of {name}, one a rank: {count} batches are "
            f"{in_pass} steps{rest}."
        )
    if steps is not None and steps > in_pass and current().is_chief:
        log.warning(
            f"`steps_per_epoch={steps}` is more than the {in_pass} steps that the {count} batches "
            f"of {name} are, so an epoch goes through them more than once. Leave it out for epochs "
            "of one pass."
        )
    return in_pass if steps is None else int(steps)


def _for_validation(py_dataset: Any, arguments: Mapping[str, Any]) -> FitPyDataset:
    count, steps = num_batches_of(py_dataset), arguments["validation_steps"]
    if count is None and steps is None:
        raise ConfigurationError(
            f"`validation_data`: {type(py_dataset).__name__} has no end; pass `validation_steps`."
        )
    batches = min(each for each in (count, steps) if each is not None)
    order = EvaluationOrder(int(batches), Shard(current().rank, current().size))
    return FitPyDataset(py_dataset, order, 0, current().collectives)
