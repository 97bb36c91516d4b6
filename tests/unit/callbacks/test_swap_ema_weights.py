from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from driving import make_data, make_model
from harness import environment, forked

from distrib.callbacks import ModelCheckpoint, SwapEMAWeights


def ema_model(kind: str = "plain") -> keras.Model:
    def sgd() -> Any:
        return keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)

    optimizer = sgd()
    if kind == "loss-scale":
        optimizer = keras.optimizers.LossScaleOptimizer(sgd())
    return make_model(optimizer=optimizer)


def fit(model: keras.Model, callbacks: list[Any], validate: bool, epochs: int = 3) -> Any:
    x, y = make_data()
    return model.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        validation_data=(x, y) if validate else None,
        callbacks=callbacks,
        verbose=0,
    )


def bits(variables: Any) -> list[bytes]:
    return [keras.ops.convert_to_numpy(variable).tobytes() for variable in variables]


@pytest.mark.parametrize("kind", ["plain", "loss-scale"])
def test_validation_alters_nothing(kind: str) -> None:
    with_validation, without = ema_model(kind), ema_model(kind)
    fit(with_validation, [SwapEMAWeights()], validate=True)
    fit(without, [], validate=False)
    assert bits(with_validation.variables) == bits(without.variables)
    assert bits(with_validation.optimizer.variables) == bits(without.optimizer.variables)


def test_swap_moves_every_bit() -> None:
    model = ema_model()
    model.optimizer.build(model.trainable_variables)
    values = [np.array([[np.nan], [1e30], [1e-40]], np.float32), np.array([-0.0], np.float32)]
    model.set_weights(values)
    averages = model.optimizer._model_variables_moving_average
    others = [np.array([[1e-30], [np.inf], [3.0]], np.float32), np.array([0.1], np.float32)]
    for average, other in zip(averages, others, strict=True):
        average.assign(other)
    swap = SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    assert bits(model.weights) == [value.tobytes() for value in others]
    assert bits(averages) == [value.tobytes() for value in values]
    swap.on_test_end()
    assert bits(model.weights) == [value.tobytes() for value in values]


def test_keras_alters_the_weights() -> None:
    """When Keras mends it, `SwapEMAWeights._tf_swap_variables` can go."""
    with_validation, without = ema_model(), ema_model()
    fit(with_validation, [keras.callbacks.SwapEMAWeights()], validate=True)
    fit(without, [], validate=False)
    assert bits(with_validation.variables) != bits(without.variables)


def test_weights_are_back_after_predict() -> None:
    model = ema_model()
    fit(model, [], validate=False)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    before = bits(model.weights)
    swap = SwapEMAWeights()
    model.predict(make_data()[0], callbacks=[swap], verbose=0)
    assert bits(model.weights) == before
    assert not swap._ema_weights_in_model


def test_keras_leaves_the_averages_in_the_model_after_predict() -> None:
    """When Keras mends it, `SwapEMAWeights.on_predict_end` can go."""
    model = ema_model()
    fit(model, [], validate=False)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    before = bits(model.weights)
    swap = keras.callbacks.SwapEMAWeights()
    model.predict(make_data()[0], callbacks=[swap], verbose=0)
    assert bits(model.weights) != before
    assert swap._ema_weights_in_model


def test_callbacks_after_it_see_the_averages(tmp_path: Path) -> None:
    model = ema_model()
    saver = ModelCheckpoint(tmp_path / "m.weights.h5", save_weights_only=True)
    swap = SwapEMAWeights(swap_on_epoch=True)
    history = fit(model, [swap, saver], validate=True)
    model.load_weights(tmp_path / "m.weights.h5")
    loss = model.evaluate(*make_data(), verbose=0)
    assert loss == pytest.approx(history.history["val_loss"][-1])


def test_resumed_epoch_begins_with_the_weights() -> None:
    whole = ema_model()
    fit(whole, [SwapEMAWeights(swap_on_epoch=True)], validate=True)

    class Snapshot(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 0:
                self.values = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
                self.state = swap.get_state()

    model, swap, snapshot = ema_model(), SwapEMAWeights(swap_on_epoch=True), Snapshot()
    fit(model, [swap, snapshot], validate=True)
    assert snapshot.state == {"_ema_weights_in_model": True}

    resumed, swap = ema_model(), SwapEMAWeights(swap_on_epoch=True)
    resumed.optimizer.build(resumed.trainable_variables)
    variables = (*resumed.variables, *resumed.optimizer.variables)
    for variable, value in zip(variables, snapshot.values, strict=True):
        variable.assign(value)
    swap.set_state(snapshot.state)
    x, y = make_data()
    resumed.fit(
        x,
        y,
        batch_size=8,
        initial_epoch=1,
        epochs=3,
        shuffle=False,
        validation_data=(x, y),
        callbacks=[swap],
        verbose=0,
    )
    assert bits(resumed.variables) == bits(whole.variables)
    assert bits(resumed.optimizer.variables) == bits(whole.optimizer.variables)


def test_optimizer_without_averages_is_refused() -> None:
    with pytest.raises(ValueError, match="use_ema=True"):
        fit(make_model(), [SwapEMAWeights()], validate=True)


MIRRORED = """
import keras, numpy as np, distrib
from distrib.callbacks import SwapEMAWeights
x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
y = x.sum(axis=1, keepdims=True)
cluster = distrib.init("mirrored", devices=2)
def train(validate):
    keras.utils.set_random_seed(1)
    with cluster.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.05, use_ema=True), "mse")
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0,
              validation_data=(x, y) if validate else None,
              callbacks=[SwapEMAWeights()] if validate else [])
    swap = SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    copies = [[c.numpy() for c in v.value.values] for v in model.weights]
    averages = [v.numpy() for v in model.optimizer._model_variables_moving_average]
    swap.on_test_end()
    return model, copies, averages
validated, copies, swapped_out = train(True)
plain, _, _ = train(False)
for a, b in zip(validated.variables, plain.variables, strict=True):
    np.testing.assert_array_equal(a.numpy(), b.numpy())
for replicas in copies:
    assert len(replicas) == 2
    np.testing.assert_array_equal(replicas[0], replicas[1])
for value, weight in zip(swapped_out, validated.weights, strict=True):
    np.testing.assert_array_equal(value, weight.numpy())
print("equal")
"""


@pytest.mark.slow
def test_replicas_swap_alike(tmp_path: Path) -> None:
    # A process of its own: the CPU can be divided only before TensorFlow starts.
    script = tmp_path / "train.py"
    script.write_text(MIRRORED)
    result = subprocess.run(
        forked(script), env=environment(), capture_output=True, text=True, check=False, cwd="/"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("equal")
