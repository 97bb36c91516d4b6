import random

import keras
import numpy as np

from distrib.state.random_generators import random_state, set_random_state


def test_random_generators_continue() -> None:
    keras.utils.set_random_seed(1)
    keras.random.normal((2,))
    state = random_state()

    def draw() -> list[Any]:
        return [
            random.random(),
            np.random.rand(),
            keras.ops.convert_to_numpy(keras.random.normal((2,))).tolist(),
        ]

    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first
