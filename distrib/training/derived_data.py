"""Refuses data that a `fit` would resume with other batches: what was made from a cluster.dataset.

Its position is lost (see `distrib.data.derived`), and the state of its iterator does not help: the
examples of a rank, and with them their order, depend on the number of ranks.
"""

from __future__ import annotations

from typing import Any

import keras

from distrib.data.derived import derivation
from distrib.errors import ConfigurationError
from distrib.training.fit_call import FitCall

_BATCH_SIZE = "Pass the `batch_size` that you need to `cluster.dataset`."
_BEFORE_REPEAT = "Call it before `repeat()`."
_ADVICE = {
    **dict.fromkeys(("batch", "unbatch", "rebatch", "padded_batch", "window"), _BATCH_SIZE),
    **dict.fromkeys(("take", "skip"), _BEFORE_REPEAT),
    "shuffle": "Pass `shuffle=True` to `cluster.dataset`.",
    "zip": "Write `a.zip(b)`, where both are cluster.datasets.",
    "concatenate": "Write `a.concatenate(b)`, where both are cluster.datasets.",
}
_OTHERS = "Do it to the examples, before `cluster.dataset(...)`."


def is_shared(data: Any) -> bool:
    """Tell whether data is a cluster.dataset or made from one: each rank has a part of it."""
    return derivation(data) is not None


def refuse_derived(call: FitCall) -> None:
    """Refuse a `fit` whose data have lost the position of the cluster.dataset they come from.

    Raises:
        ConfigurationError: Names the argument, the method, and what to write instead.
    """
    given = call.arguments.get("validation_data")
    validation = None if given is None else keras.utils.unpack_x_y_sample_weight(given)[0]
    for argument, data in {"x": call.data, "validation_data": validation}.items():
        operations = derivation(data)
        if operations:
            raise ConfigurationError(
                f"`{argument}` was made from a cluster.dataset by `{operations[0]}`, which loses "
                "its position, so BackupAndRestore could not go on with the same batches. "
                f"{_ADVICE.get(operations[0], _OTHERS)}"
            )
