"""State of layers that is no variable, restored into layers of a script that did something else."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.checkpoint.training_item import LAYERS
from distrib.errors import CheckpointMismatchError
from distrib.state import codec
from distrib.state.host_copies import HostBuffers
from distrib.state.layer_state import LayerStates
from distrib.state.training_state import TrainingState

L = keras.layers
NUMBERS = np.random.default_rng(0).normal(5, 3, size=(32, 3)).astype("float32")
WORDS = np.array([["a b"], ["b c"], ["c d e"], ["f g h"]])
TOKENS = np.array([["a"], ["b"], ["b"], ["c"]])


class Hooked(L.Layer):
    """Saves a number by Keras's hooks."""

    scale = 1.0

    def adapt(self, data: Any) -> None:
        self.scale = float(np.std(data))

    def call(self, x: Any) -> Any:
        return x / self.scale

    def save_own_variables(self, store: Any) -> None:
        store["scale"] = np.float64(self.scale)

    def load_own_variables(self, store: Any) -> None:
        self.scale = float(store["scale"][()])


class Plain(L.Layer):
    """Keeps what it learned in attributes."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.mean = factor, 0.0

    def adapt(self, data: Any) -> None:
        self.mean, self.deviation = float(np.mean(data)), np.std(data, axis=0)

    def call(self, x: Any) -> Any:
        return self.factor * (x - self.mean)


class Deriving(L.Layer):
    """Computes with a constant that it derives from its variable."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(), initializer="ones", trainable=False)
        self.derive()

    def derive(self) -> None:
        self.inverse = 1 / tf.convert_to_tensor(self.scale)

    def adapt(self, data: Any) -> None:
        self.scale.assign(np.std(data))
        self.derive()

    def call(self, x: Any) -> Any:
        return x * self.inverse

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self.derive()


CASES: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "Normalization": (L.Normalization, NUMBERS, NUMBERS * 2 + 1),
    "Discretization": (lambda: L.Discretization(num_bins=4), NUMBERS, NUMBERS * 2 + 1),
    "TextVectorization": (
        lambda: L.TextVectorization(output_sequence_length=3),
        WORDS,
        WORDS[::-1][:2],
    ),
    "multi-hot": (
        lambda: L.TextVectorization(10, output_mode="multi_hot", pad_to_max_tokens=True),
        WORDS,
        WORDS[::-1][:2],
    ),
    "StringLookup": (L.StringLookup, TOKENS, TOKENS[:2]),
    "IntegerLookup": (L.IntegerLookup, np.array([[3], [4], [4]]), np.array([[9], [4]])),
    "hooks": (Hooked, NUMBERS, NUMBERS * 2 + 1),
    "attributes": (Plain, NUMBERS, NUMBERS * 2 + 1),
    "derived": (Deriving, NUMBERS, NUMBERS * 2 + 1),
}


def model_of(layer: Any, data: Any, adapted_to: Any) -> keras.Model:
    kind = "string" if data.dtype.kind == "U" else data.dtype.name
    inputs = keras.Input(data.shape[1:], dtype=kind)
    inner = keras.Sequential([keras.Input(data.shape[1:], dtype=kind), layer])  # Nested.
    if adapted_to is not None:
        layer.adapt(adapted_to)
    model = keras.Model(inputs, inner(inputs))
    model.compile("sgd", "mse")
    return model


def saved(model: keras.Model) -> tuple[Any, Any, Any]:
    state = TrainingState(model, metrics=False)
    return state.describe(), state.snapshot(HostBuffers()), restored(state.layers.capture())


def restored(layers: Any) -> Any:
    encoded, arrays = codec.encode(layers, LAYERS)
    return codec.decode(encoded, arrays)


@pytest.mark.parametrize("adapted", ["alike", "not", "to other data"])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_continues_with_what_it_held(name: str, adapted: str) -> None:
    make, data, other = CASES[name]
    x = tf.constant(data)
    model = model_of(make(), data, data)
    expected = np.asarray(model.predict(x, verbose=0))
    description, arrays, layers = saved(model)
    adapted_to = {"alike": data, "not": None, "to other data": other}[adapted]
    resumed = model_of(make(), data, adapted_to)
    if adapted_to is not None:
        resumed.predict(x, verbose=0)  # A function that was traced holds the old constants.
    state = TrainingState(resumed, metrics=False)
    state.check(description)
    state.layers.check(layers)
    state.restore(description, arrays, layers)
    np.testing.assert_array_equal(np.asarray(resumed.predict(x, verbose=0)), expected)
    assert codec.digest(state.layers.capture()) == codec.digest(layers)


def test_a_vocabulary_that_the_script_gives_must_be_the_same() -> None:
    def states(layer: Any) -> LayerStates:
        return LayerStates(model_of(layer, TOKENS, None))

    given = states(L.StringLookup(vocabulary=["a", "b"]))
    states(L.StringLookup(vocabulary=["a", "b"])).check(given.capture())
    message = r"string_lookup.*: checkpoint has a vocabulary of 3 entries, this run has another one"
    with pytest.raises(CheckpointMismatchError, match=message):
        states(L.StringLookup(vocabulary=["b", "a"])).check(given.capture())
    adapted = L.StringLookup()
    adapted.adapt(TOKENS)
    with pytest.raises(CheckpointMismatchError, match=message):
        states(adapted).check(given.capture())


def test_other_layers_are_refused() -> None:
    held = LayerStates(model_of(L.Normalization(), NUMBERS, NUMBERS)).capture()
    message = "checkpoint has Normalization 'normalization', this run has Hooked 'hooked'"
    with pytest.raises(CheckpointMismatchError, match=message):
        LayerStates(model_of(Hooked(), NUMBERS, NUMBERS)).check(held)


def test_a_vocabulary_that_keras_cannot_read_back_is_refused() -> None:
    lookup, other = L.StringLookup(), L.StringLookup()
    held = LayerStates(model_of(lookup, TOKENS, np.array(["a\nb", "c"]))).capture()
    with pytest.raises(CheckpointMismatchError, match="a token may hold a line break"):
        LayerStates(model_of(other, TOKENS, TOKENS)).load(held)


def test_weights_of_adapters_are_restored_exactly() -> None:
    """Keras's own hooks merge them into the kernel."""
    model = keras.Sequential([keras.Input((3,)), L.Dense(4)])
    model.layers[0].enable_lora(2)
    model.compile("sgd", "mse")
    model.layers[0].lora_kernel_b.assign(np.ones((2, 4)))
    description, arrays, layers = saved(model)
    assert layers == []
    before = [variable.numpy() for variable in model.variables]
    TrainingState(model, metrics=False).restore(description, arrays, layers)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_layers_without_a_vocabulary_are_named() -> None:
    layer = L.StringLookup(name="tokens")
    assert LayerStates(model_of(layer, TOKENS, None)).not_adapted == ["tokens"]
