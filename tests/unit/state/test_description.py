import enum
import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.state.description import describe, describe_class, describe_config
from distrib.storage.locate import locate


class Colour(enum.IntEnum):
    RED = 1


@dataclass
class Settings:
    rate: float


class Holder:
    """Has nothing that describes it."""


def compiled(text: str, name: str = "f") -> Any:
    """What the text of a script defines."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(text, space)
    return space[name]


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (None, None),
        (Colour.RED, "Colour.RED"),
        (np.float32(0.5), 0.5),
        ((1, [2.5, "x"]), [1, [2.5, "x"]]),
        ({0: 2.0}, {"0": 2.0}),
        ({"b", "a"}, ['"a"', '"b"']),
        (Path("/runs/17"), "/runs/17"),
        ("redis://user:word@host/0", "redis://host/0"),
        (SimpleNamespace(lr=1), {"lr": 1}),
        (Holder, "Holder"),
        (len, "len"),
        (keras.losses.mean_squared_error, "mean_squared_error"),
        (keras.regularizers.L2(0.5), {"class": "L2", "l2": 0.5}),
        (np.zeros(2, np.int8), "int8 (2,) 96a296d2"),
        (tf.zeros(2, tf.int8), "int8 (2,) 96a296d2"),
        (np.zeros(2**21), "float64 (2097152,)"),
        (functools.partial(len, 1, a=2), {"function": "len", "arguments": [1, {"a": 2}]}),
    ],
)
def test_describe(value: Any, described: Any) -> None:
    assert describe(value) == described


def test_a_location_without_its_options() -> None:
    location = locate("memory://run", "directory", {"secret": "word"})
    assert describe(location) == str(location)


def test_a_dataclass_by_its_fields() -> None:
    assert describe(Settings(0.5)).items() >= {"class": "Settings", "rate": 0.5}.items()


def test_an_object_by_its_class_alone() -> None:
    assert describe(Holder()) == describe_class(Holder)
    assert " at 0x" not in str(describe(Holder()))


def test_keras_numbers_are_no_part_of_a_config() -> None:
    first, second = keras.metrics.Mean(name="mean_1"), keras.metrics.Mean(name="mean_7")
    assert describe(first) == describe(second)
    schedule = keras.optimizers.schedules.CosineDecay(0.5, 100)
    adam = describe_config(keras.optimizers.Adam(schedule))
    assert adam["learning_rate"]["class"] == "CosineDecay"
    assert adam["learning_rate"]["initial_learning_rate"] == 0.5


def test_a_config_that_cannot_be_had() -> None:
    class Broken(keras.layers.Layer):
        def get_config(self) -> dict[str, Any]:
            raise RuntimeError("not today")

    assert describe_config(Broken())["config"] == "none (RuntimeError)"


def test_a_long_list_is_told_by_its_rest() -> None:
    first, second = list(range(500)), [*range(499), 7]
    assert len(describe(first)) == 101
    assert describe(first) != describe(second)


@pytest.mark.parametrize(
    "same",
    [
        "\n\n# A comment.\ndef f(x):\n    'Another docstring.'\n    return x + 1\n",
        "def f(x):\n    return x + 1 # here\n",
    ],
)
def test_code_that_does_the_same(same: str) -> None:
    assert describe(compiled(same)) == describe(compiled("def f(x):\n 'Doc.'\n return x + 1"))


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n return x + 2",
        "def f(x):\n return x - 1",
        "def f(y):\n return z + 1",
        "def f(x, y=2):\n return x + 1",
        "def f(x):\n return (lambda: x + 2)()",
    ],
)
def test_code_that_does_something_else(other: str) -> None:
    assert describe(compiled(other)) != describe(compiled("def f(x):\n return x + 1"))


def test_numbers_that_a_function_closes_over() -> None:
    make = compiled("def make(rate):\n return lambda epoch: rate * epoch", "make")
    assert describe(make(1.0)) == describe(make(1.0))
    assert describe(make(1.0)) != describe(make(2.0))
    assert describe(make(1.7e9)) == describe(make(1.8e9))  # When the script was started.


def test_classes_by_their_code() -> None:
    text = "class C:\n  'Doc.'\n  rate = {}\n  @property\n  def f(self):\n    return {}"
    described = [
        describe_class(compiled(text.format(*pair), "C")) for pair in ((1, 2), (3, 2), (1, 4))
    ]
    assert described[0] == describe_class(compiled(text.format(1, 2), "C"))
    assert len({each["code"] for each in described}) == 3
    assert describe_class(keras.layers.Dense) == {"class": "Dense"}


def test_the_same_in_every_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from distrib.state.description import describe\n"
        "class C:\n"
        "  words = {'a', 'b', 'c'}\n"
        "  def f(self, x):\n"
        "    return x in {'a', 'b', 'c', 'd', 'e'}\n"
        "print(describe([C(), {'x', 'y', 'z'}, C().f, lambda x: x in {'a', 'b', 'c'}]))\n"
    )
    said = {
        subprocess.run(
            [sys.executable, script],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in "12"
    }
    assert len(said) == 1
