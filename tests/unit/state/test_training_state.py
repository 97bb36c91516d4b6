import json
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.errors import CheckpointMismatchError, ConfigurationError
from distrib.state.build import build
from distrib.state.host_copies import HostBuffers
from distrib.state.training_state import TrainingState

SPEC = (tf.TensorSpec((None, 4), tf.float32), tf.TensorSpec((None, 1), tf.float32))


def make(units: int = 3, optimizer: Any = "adam", width: int = 4) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((width,)),
            keras.layers.Dense(units, name="hidden"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def built(**kwargs: Any) -> keras.Model:
    model = make(**kwargs)
    build(model, SPEC)
    return model


def saved(model: keras.Model) -> tuple[dict[str, Any], Any]:
    state = TrainingState(model)
    return json.loads(json.dumps(state.describe())), state.snapshot(HostBuffers())


def train(model: keras.Model) -> None:
    model.fit(np.ones((8, 4), "float32"), np.ones((8, 1), "float32"), epochs=2, verbose=0)


def test_restores_every_variable_exactly() -> None:
    model = built()
    train(model)
    description, arrays = saved(model)
    other = built()
    state = TrainingState(other)
    state.check(description)
    state.restore(description, arrays)
    assert saved(other)[1].keys() == arrays.keys()
    for group, members in saved(other)[1].items():
        for value, name in zip(members.values(), arrays[group], strict=True):
            np.testing.assert_array_equal(value, arrays[group][name], err_msg=name)
    assert int(other.optimizer.iterations) == 2


def test_lists_seeds_metrics_and_slots() -> None:
    names = {f"{entry['group']}:{entry['path']}" for entry in saved(built())[0]["variables"]}
    assert any("seed_generator_state" in name for name in names)
    assert "metrics:loss/total" in names
    assert any(name.startswith("optimizer:") and "velocity" in name for name in names)
    assert any(name.startswith("metrics:mean_absolute_error") for name in names)


def test_snapshots_are_copies_in_reused_memory() -> None:
    model = built()
    state, buffers = TrainingState(model), HostBuffers()
    first = state.snapshot(buffers)["model"]
    kernel = next(iter(first))
    before = first[kernel].copy()
    train(model)
    np.testing.assert_array_equal(first[kernel], before)
    second = state.snapshot(buffers)["model"]
    assert second[kernel] is first[kernel]
    assert not np.array_equal(second[kernel], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": 5}, r"hidden/kernel \(4, 3\) float32, this run has .*hidden/kernel \(4, 5\)"),
        ({"optimizer": "sgd"}, "optimizer: checkpoint has Adam, this run has SGD"),
        ({"optimizer": "adamw"}, "optimizer: checkpoint has Adam, this run has AdamW"),
    ],
)
def test_another_model_or_optimizer_is_refused_with_the_difference(
    change: dict[str, Any], message: str
) -> None:
    description, _ = saved(built())
    other = built(**change)
    before = [value.copy() for value in other.get_weights()]
    with pytest.raises(CheckpointMismatchError, match=message):
        TrainingState(other).check(description)
    for value, old in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_numbers_that_keras_adds_to_names_do_not_matter() -> None:
    description, _ = saved(built())
    make(), make()
    TrainingState(built()).check(description)


def test_long_lists_of_differences_are_cut() -> None:
    description, _ = saved(built())
    with pytest.raises(CheckpointMismatchError, match=r"and \d+ more"):
        TrainingState(built(units=9)).check(description)


class Custom(keras.Model):
    """Holds what Keras does not count among a model's variables."""

    def __init__(self, build_late: bool = False) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.second = keras.optimizers.SGD(0.1, momentum=0.9)
        self.raw = tf.Variable(2.0)
        self.nested = {"list": [tf.Variable([1, 2])]}
        self.generator = tf.random.Generator.from_seed(1)
        self.build_late = build_late

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x))
        variables = self.trainable_variables
        self.second.apply(tape.gradient(loss, variables), variables)
        self.raw.assign_add(self.generator.normal(()))
        self._loss_tracker.update_state(loss)
        return self.compute_metrics(x, y, self(x))


def custom(**kwargs: Any) -> keras.Model:
    model = Custom()
    model.compile(loss="mse", **kwargs)
    return model


def test_custom_train_step_is_built_by_tracing_it() -> None:
    model = custom()
    build(model, SPEC)
    assert model.built
    assert model.second.built
    assert float(model.raw) == 2.0
    paths = [entry["path"] for entry in saved(model)[0]["variables"] if entry["group"] == "other"]
    assert len(paths) == len(set(paths))
    assert sum("momentum" in path for path in paths) == 2
    TrainingState(model).check_complete()


def test_custom_state_is_restored() -> None:
    model, other = custom(), custom()
    build(model, SPEC)
    train(model)
    description, arrays = saved(model)
    build(other, SPEC)
    state = TrainingState(other)
    state.check(description)
    state.restore(description, arrays)
    assert float(other.raw) == float(model.raw)
    assert (
        other.generator.normal((3,)).numpy().tolist()
        == model.generator.normal((3,)).numpy().tolist()
    )


def test_variables_of_the_first_step_are_reported() -> None:
    model = custom(run_eagerly=True)
    build(model, SPEC)
    state = TrainingState(model)
    train(model)
    with pytest.raises(ConfigurationError, match=r"created by the first train step.*before `fit`"):
        state.check_complete()
