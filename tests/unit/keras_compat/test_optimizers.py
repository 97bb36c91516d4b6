"""These fail when a Keras release changes what `keras_compat/optimizers.py` relies on."""

from typing import Any

import keras
import tensorflow as tf

from distrib.keras_compat import optimizers


def variables() -> list[Any]:
    return [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]


def test_what_an_optimizer_was_built_for() -> None:
    trained = variables()
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(trained)
    assert optimizers.variables_to_train(optimizer) == trained


def test_wrapped_optimizers() -> None:
    inner = keras.optimizers.SGD(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(inner)
    assert list(optimizers.chain_of(scaled)) == [scaled, inner]
    assert list(optimizers.chain_of(None)) == []
    rate = optimizers.learning_rate_of(scaled)
    assert float(rate.numpy()) == float(inner.learning_rate.numpy())
    rate.assign(0.5)
    assert float(inner.learning_rate.numpy()) == 0.5


def test_a_schedule_is_no_variable() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    assert optimizers.learning_rate_of(keras.optimizers.SGD(schedule)) is schedule
    assert optimizers.learning_rate_of(None) is None


def test_accumulated_gradients_are_clipped_when_they_are_applied() -> None:
    def clip(gradients: list[Any]) -> list[Any]:
        applied.append([gradient.numpy().tolist() for gradient in gradients])
        return gradients

    applied: list[Any] = []
    trained = variables()
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.build(trained)
    setattr(optimizer, optimizers.CLIP_GRADIENTS, clip)
    gradients = [tf.constant([1.0, 1.0]), tf.constant([2.0])]
    optimizer.apply(gradients)
    sums = [value.numpy().tolist() for value in optimizers.accumulated_gradients_of(optimizer)]
    assert sums == [[1.0, 1.0], [2.0]]
    optimizer.apply(gradients)
    assert applied[-1] == [[1.0, 1.0], [2.0]]
    assert [value.numpy().tolist() for value in trained] == [[0.0, 1.0], [1.0]]


def test_moving_averages() -> None:
    trained = variables()
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    optimizer.build(trained)
    optimizer.apply([tf.constant([1.0, 1.0]), tf.constant([2.0])])
    averages = optimizers.moving_averages_of(optimizer)
    assert [average.shape for average in averages] == [(2,), (1,)]


def test_the_strategy_and_the_sum_over_its_replicas() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        optimizer = keras.optimizers.SGD(1.0)
    assert optimizers.strategy_of(optimizer) is strategy
    scaled = keras.optimizers.LossScaleOptimizer(optimizer)
    default = tf.distribute.get_strategy()
    optimizers.disable_sum_over_replicas(scaled, default)
    assert optimizers.strategy_of(optimizer) is default
    gradients = [tf.constant([1.0])]
    assert optimizer._all_reduce_sum_gradients(gradients) == gradients
