"""Names and descriptions in a checkpoint's JSON item `training`, which holds all but the arrays.

`distrib.state` writes and restores the item; `distrib checkpoints` reads it without TensorFlow. The
names are part of the format: a checkpoint with another name does not load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

POSITION = "position"
MODEL_CONFIG = "model"
# Describes the variables and the optimizer. `STATES` holds what callbacks and generators saved.
VARIABLES_STATE = "state"
DATA = "data"
STATES = "states"
OTHER_RANKS = "other_ranks"
HISTORY = "history"
LOGS = "logs"
LAYERS = "layers"  # Checkpoints of older versions have none.
VERSIONS = "versions"
# What the run is made of; checkpoints written by an earlier distrib have none.
RECORD = "record"
# How far the run was meant to train; missing in checkpoints of old versions.
GOAL = "goal"

# Entries of `STATES` beside those of callbacks.
RANDOM_GENERATORS = "random generators"
STOP_REQUEST = "stop wish"
DATA_STATE = "data"  # Of data whose position is more than an epoch and a step.
VALIDATION_STATE = "validation data"  # The same of validation data.
NOT_CALLBACKS = frozenset({RANDOM_GENERATORS, STOP_REQUEST, DATA_STATE, VALIDATION_STATE})

# Group of the arrays that belong to `STATES`, `OTHER_RANKS`, `HISTORY`, `LOGS` and `LAYERS`.
CALLBACK_ARRAYS = "callbacks"


def format_variable(variable: Mapping[str, Any]) -> str:
    """Return path, shape and dtype of a variable.

    Args:
        variable: Its description: `path`, `shape`, `dtype`.

    Example:
    >>> format_variable({"path": "dense/kernel", "shape": [2, 3], "dtype": "float32"})
    'dense/kernel (2, 3) float32'
    """
    return f"{variable['path']} {tuple(variable['shape'])} {variable['dtype']}"


def unnumbered(path: str) -> str:
    """Return a variable's path without the numbers that Keras counts up in each process.

    Example:
    >>> unnumbered("sequential_1/dense_12/kernel")
    'sequential/dense/kernel'
    """
    return re.sub(r"_\d+(?=[_/~]|$)", "", path)


def identity(variable: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what must agree between two descriptions of the same variable.

    Args:
        variable: Its description: `group`, `path`, `shape`, `dtype`.
    """
    path, shape = unnumbered(variable["path"]), tuple(variable["shape"])
    return variable["group"], path, shape, variable["dtype"]
