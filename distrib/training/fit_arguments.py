"""Turns what `fit` is given into data that ranks share and that a restart resumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distrib.data.resumable import ResumableDataset
from distrib.training.array_arguments import array_arguments
from distrib.training.pipeline_arguments import pipeline_arguments


def resumable_arguments(
    model: Any, arguments: Mapping[str, Any], given: frozenset[str]
) -> dict[str, Any]:
    """Return what to change of the arguments of a `fit` that is resumed, or that ranks share.

    On several ranks all of them call it together.

    Args:
        model: Compiled.
        arguments: All arguments by name, those with defaults included.
        given: Names of the arguments that the caller has passed.

    Raises:
        ConfigurationError: If the data cannot be shared between ranks.
        ValueError: In Keras's words, if Keras would refuse the data.
    """
    changes = unshuffled(arguments["x"], given)
    changes |= array_arguments(model, arguments)
    return changes | pipeline_arguments(model, {**arguments, **changes}, given)


def unshuffled(data: Any, given: frozenset[str]) -> dict[str, Any]:
    """Return what to change so that Keras does not warn of `shuffle=True`, its own default.

    Keras never shuffles datasets, and says so unless the argument is false. A user who passes it is
    told.
    """
    is_default = isinstance(data, ResumableDataset) and "shuffle" not in given
    return {"shuffle": False} if is_default else {}
