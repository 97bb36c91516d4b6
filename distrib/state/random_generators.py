"""The random generators of the process: Keras's, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from distrib.keras_compat.layers import global_seed_generator
from distrib.state.variables import replicas_of

_GLOBAL_SEED = "keras_global_seed"


def random_state() -> dict[str, Any]:
    """Return the state of the process's random generators: Keras's, NumPy's and Python's."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }
    generator = global_seed_generator(create=False)
    if generator is not None:
        state[_GLOBAL_SEED] = replicas_of(generator.state)[0].numpy()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Continue the random generators from what `random_state` returned."""
    if _GLOBAL_SEED in state:
        for replica in replicas_of(global_seed_generator(create=True).state):
            replica.assign(state[_GLOBAL_SEED])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
