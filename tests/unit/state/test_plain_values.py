import json
import random
import re
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from distrib.state import codec
from distrib.state.container_kinds import NotRebuiltError
from distrib.state.plain_values import (
    Rebuilder,
    from_storable,
    is_plain,
    snapshot,
    storable,
    without_large_arrays,
)

Pair = namedtuple("Pair", "first second")


class Colour(Enum):
    RED = 1


@dataclass
class Meter:
    total: float = 0.0
    seen: list[int] = field(default_factory=list)


class Slotted:
    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


def through_a_checkpoint(value: Any, old: Any = None) -> Any:
    tree = snapshot(value)
    assert is_plain(tree)
    encoded, arrays = codec.encode(storable(tree), "x")
    decoded = codec.decode(json.loads(json.dumps(encoded)), arrays)
    assert from_storable(decoded) == tree
    return Rebuilder().rebuild(from_storable(decoded), old)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, 2.5, (True, "x")], 3: {(1, 2): None}},
        [0.1] * 1000,
        list(range(1000)),
        [2**80] * 1000,
        [True] * 1000,
        tuple(range(1000)),
        {1, 2, "x"},
        set(range(1000)),
        frozenset({1.5}),
        OrderedDict(b=1, a=2),
        Counter("hello"),
        Pair(1, [2]),
        Path("a/b"),
        Colour.RED,
        np.less,
        keras.ops.greater,
        Meter,
        Meter(1.5, [3]),
        np.float32(0.1),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
)
def test_plain_values_come_back(value: Any) -> None:
    back = through_a_checkpoint(value)
    assert back == value
    assert type(back) is type(value)


def test_containers_with_more_than_items_come_back() -> None:
    back = through_a_checkpoint(deque([1, [2]], maxlen=3))
    assert (list(back), back.maxlen) == ([1, [2]], 3)
    back = through_a_checkpoint(defaultdict(list, a=[1]))
    assert back["b"] == []
    assert back["a"] == [1]
    assert through_a_checkpoint(Slotted(4)).count == 4


@pytest.mark.parametrize("dtype", [np.float32, np.int8, bool, ml_dtypes.bfloat16, np.complex64])
def test_arrays_and_tensors_come_back(dtype: Any) -> None:
    array = np.ones((2, 3), dtype)[:, ::2]
    back = through_a_checkpoint([array, tf.constant(array), np.zeros((0, 2), dtype)])
    np.testing.assert_array_equal(back[0], array)
    assert back[0].dtype == array.dtype
    assert isinstance(back[1], tf.Tensor)
    np.testing.assert_array_equal(back[1], array)
    assert back[2].shape == (0, 2)


@pytest.mark.parametrize(
    "make",
    [random.Random, np.random.RandomState, lambda seed: np.random.default_rng(seed)],
    ids=["python", "legacy", "numpy"],
)
def test_random_generators_go_on(make: Any) -> None:
    def draw(generator: Any) -> list[float]:
        return [generator.random() for _ in range(3)]

    generator, old = make(1), make(2)
    draw(generator)
    back = through_a_checkpoint(generator, old)
    assert back is old
    lazily = through_a_checkpoint(generator)
    assert draw(back) == draw(lazily) == draw(generator)


def test_variables_and_metrics_are_assigned_to() -> None:
    metric = keras.metrics.Mean()
    metric.update_state(3.0)
    seed = keras.random.SeedGenerator(1)
    seed.next()
    present = [tf.Variable(1.0), keras.Variable(2.0), keras.metrics.Mean()]
    present.append(keras.random.SeedGenerator(5))
    saved = [tf.Variable(5.0), keras.Variable(6.0), metric, seed]
    back = through_a_checkpoint(saved, list(present))
    assert all(a is b for a, b in zip(back, present, strict=True))
    assert (float(present[0]), float(present[1]), float(present[2].result())) == (5.0, 6.0, 3.0)
    np.testing.assert_array_equal(present[3].state.numpy(), seed.state.numpy())
    for value in saved:
        with pytest.raises(NotRebuiltError, match="training"):
            through_a_checkpoint(value)


def model(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1), keras.layers.Dropout(0.5)])
    made.compile("adam", "mse")
    return made


def test_another_model_gets_its_weights_and_its_optimizer_state() -> None:
    trained, new = model(1), model(2)
    trained.fit(np.ones((4, 2)), np.ones(4), verbose=0)
    assert through_a_checkpoint({"m": trained}, {"m": new})["m"] is new
    for one, other in [(trained, new), (trained.optimizer, new.optimizer)]:
        for a, b in zip(one.variables, other.variables, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_is_saved_elsewhere_is_left_alone() -> None:
    trained, old = model(1), model(2)
    ours = {id(variable) for variable in trained.variables}
    value = [trained.variables[0], trained]
    before = old.variables[0].numpy()
    tree = snapshot(value, ours)
    trained.variables[0].assign_add(before)
    assert snapshot(value, ours) == tree
    back = Rebuilder().rebuild(tree, [old.variables[0], old])
    assert back == [old.variables[0], old]
    np.testing.assert_array_equal(before, old.variables[0])


def test_what_exists_is_changed_in_place() -> None:
    inner: list[Any] = [1]
    old = {"list": inner, "other": 3, "meter": Meter()}
    meter = old["meter"]
    back = through_a_checkpoint({"list": [1, 2], "meter": Meter(2.0, [5])}, old)
    assert back is old
    assert old == {"list": [1, 2], "meter": Meter(2.0, [5])}
    assert old["list"] is inner
    assert old["meter"] is meter


def test_what_was_shared_stays_so_unless_it_has_parted() -> None:
    shared: list[int] = []
    rebuilder = Rebuilder()
    assert rebuilder.rebuild(snapshot([1]), shared) is shared
    assert rebuilder.rebuild(snapshot([1]), shared) is shared
    other = rebuilder.rebuild(snapshot([2]), shared)
    assert (shared, other) == ([1], [2])


class Locked:
    def __init__(self) -> None:
        self.lock = threading.Lock()


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [
        threading.Lock(),
        threading.Thread(),
        threading,
        object(),
        Locked(),
        lambda: 3,
        Meter().__init__,  # type: ignore[misc]
        iter([1]),
        keras.callbacks.Callback(),
        np.array(["a"]),
        np.array([None]),
        tf.constant("a"),
        CYCLE,
        [1, {"a": {2, threading.Lock()}}],
        defaultdict(lambda: 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_equals_itself_only(value: Any) -> None:
    assert not is_plain(snapshot(value))
    assert not is_plain(snapshot([value]))
    assert snapshot([value]) == snapshot([value])
    assert snapshot([value]) != snapshot([threading.Lock()])


def test_changes_of_parts_are_seen() -> None:
    lock = threading.Lock()
    big = np.zeros(2**18)
    value = {"lock": lock, "array": big, "numbers": [1.0] * 300}
    before = without_large_arrays(snapshot(value))
    assert before == snapshot(value)
    big[5] = 1
    assert before != snapshot(value)
    big[5] = 0
    value["numbers"][7] = 2.0  # type: ignore[index]
    assert before != snapshot(value)


def test_a_function_that_is_gone_is_named() -> None:
    tree = {"kind": "reference", "parts": ["json", "no_such"]}
    with pytest.raises(NotRebuiltError, match=r"json\.no_such does not exist"):
        Rebuilder().rebuild(tree)
