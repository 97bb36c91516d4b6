import functools
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.state.description import describe
from distrib.state.used_code import describe_used

RATE, STARTED, TEXT = 0.5, 1.7e9, "text"


def scaled(x: Any) -> Any:
    return x * RATE


class Scaling:
    def __getitem__(self, index: int) -> Any:
        return [scaled(index) for _ in range(2)]


def test_what_functions_use() -> None:
    def closing(over: Any) -> Any:
        return lambda x: (over(x), STARTED, np.ones(2), TEXT)

    code = describe(scaled)
    assert describe_used(scaled) == {"RATE": 0.5}
    assert describe_used(Scaling) == {"RATE": 0.5, "scaled": code}
    for function in (closing(scaled), functools.partial(closing(scaled))):
        assert describe_used(function) == {"RATE": 0.5, "over": code}
    assert describe_used(tf.function(closing(scaled))) == {"RATE": 0.5, "over": code}
    assert describe_used(np.ones) == describe_used(list) == describe_used(3) == {}
    assert describe(tf.function(scaled)) == code
