"""One model of each kind that a run must be able to resume, with matching data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import distrib
from distrib.callbacks import SwapEMAWeights

layers = keras.layers


@dataclass(frozen=True)
class Recipe:
    build: Callable[[], keras.Model]
    data: Callable[[int], tuple[Any, Any]]
    callbacks: Callable[[], list[Any]] = list
    schedule: bool = True  # Whether callbacks may set the learning rate.


def rows(n: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, width)).astype("float32")
    return x, (x.sum(axis=1) > 0).astype("int64") + (x[:, 0] > 1)


def compiled(model: keras.Model, **kwargs: Any) -> keras.Model:
    options: dict[str, Any] = {
        "optimizer": keras.optimizers.Adam(1e-2),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
        **kwargs,
    }
    options["optimizer"] = distrib.current().optimizer(options["optimizer"])
    model.compile(**options)
    return model


def stack(dtype: Any = None) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(16, activation="relu", dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.Dropout(0.3, dtype=dtype),
            layers.Dense(3, activation="softmax", dtype="float32"),
        ]
    )


def steady(**options: Any) -> keras.Model:
    """Neither dropout nor batch normalization: replicas and XLA make no difference but rounding."""
    dense = [layers.Dense(16, activation="tanh"), layers.Dense(3, activation="softmax")]
    return compiled(keras.Sequential([keras.Input((12,)), *dense]), **options)


class Subclassed(keras.Model):
    """Unbuilt until the first batch; has a raw `tf.Variable` and a `tf.random.Generator`."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(16, activation="relu")
        self.drop = layers.Dropout(0.3)
        self.out = layers.Dense(3, activation="softmax")
        self.noise = tf.random.Generator.from_seed(11)
        self.scale = tf.Variable(1.0)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(self.drop(self.hidden(x), training=training))

    def train_step(self, data: Any) -> Any:
        x, y = data
        self.scale.assign(self.scale * 0.99 + 0.1)
        return super().train_step((x + self.scale * 0.1 * self.noise.normal(tf.shape(x)), y))


class TwoOptimizers(keras.Model):
    """A custom train step with its own second optimizer, metric and seed generator."""

    def __init__(self) -> None:
        super().__init__()
        self.body = layers.Dense(16, activation="relu")
        self.head = layers.Dense(3)
        head_optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        self.head_optimizer = distrib.current().optimizer(head_optimizer)
        self.norm = keras.metrics.Mean(name="norm")
        self.seeds = keras.random.SeedGenerator(2)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.body(x))

    def train_step(self, data: Any) -> Any:
        x, y = data
        x = x + 0.1 * keras.random.normal(tf.shape(x), seed=self.seeds)
        with tf.GradientTape() as tape:
            prediction = self(x, training=True)
            loss = self.compute_loss(x, y, prediction)
        body, head = self.body.trainable_variables, self.head.trainable_variables
        gradients = tape.gradient(loss, body + head)
        self.optimizer.apply_gradients(zip(gradients[: len(body)], body, strict=True))
        self.head_optimizer.apply_gradients(zip(gradients[len(body) :], head, strict=True))
        self.norm.update_state(tf.linalg.global_norm(gradients))
        self._loss_tracker.update_state(loss)
        return self.compute_metrics(x, y, prediction)


class Hits(keras.metrics.Metric):
    """A custom metric with its own state."""

    def __init__(self) -> None:
        super().__init__(name="hits")
        self.hits = self.add_weight(shape=(3,), initializer="zeros", name="hits")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        hit = tf.one_hot(tf.argmax(y_pred, -1), 3) * tf.one_hot(tf.cast(y_true, tf.int32), 3)
        self.hits.assign_add(tf.reduce_sum(tf.reshape(hit, (-1, 3)), axis=0))

    def result(self) -> Any:
        return tf.reduce_sum(self.hits)


def two_ways() -> keras.Model:
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    both = layers.Concatenate()([layers.Dense(8)(left), layers.Dense(8)(right)])
    outputs = {
        "kind": layers.Dense(3, activation="softmax", name="kind")(both),
        "size": layers.Dense(1, name="size")(layers.Dropout(0.2)(both)),
    }
    return compiled(
        keras.Model({"left": left, "right": right}, outputs),
        optimizer=keras.optimizers.RMSprop(1e-2),
        loss={"kind": "sparse_categorical_crossentropy", "size": "mse"},
        metrics={"kind": ["accuracy", Hits()], "size": ["mae"]},
    )


def two_ways_data(n: int) -> tuple[Any, Any]:
    x, y = rows(n)
    return {"left": x[:, :6], "right": x[:, 6:]}, {"kind": y, "size": x.sum(axis=1, keepdims=True)}


def recurrent() -> keras.Model:
    return compiled(
        keras.Sequential(
            [
                keras.Input((6, 2)),
                layers.LSTM(8, dropout=0.2, recurrent_dropout=0.2, return_sequences=True),
                layers.GRU(8),
                layers.Dense(3, activation="softmax"),
            ]
        )
    )


def sequences(n: int) -> tuple[Any, Any]:
    x, y = rows(n)
    return x.reshape(n, 6, 2), y


RECIPES: dict[str, Recipe] = {
    "small": Recipe(lambda: compiled(stack()), rows),
    "steady": Recipe(lambda: steady(), rows),
    "subclassed": Recipe(lambda: compiled(Subclassed()), rows),
    "two_optimizers": Recipe(
        lambda: compiled(
            TwoOptimizers(), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ),
        rows,
    ),
    "two_ways": Recipe(two_ways, two_ways_data),
    "recurrent": Recipe(recurrent, sequences),
    "mixed_precision": Recipe(
        lambda: compiled(
            stack("mixed_float16"),
            optimizer=keras.optimizers.LossScaleOptimizer(
                keras.optimizers.Adam(1e-2), initial_scale=2.0**20, dynamic_growth_steps=5
            ),
        ),
        rows,
    ),
    "accumulation": Recipe(
        lambda: compiled(
            stack(), optimizer=keras.optimizers.Adam(1e-2, gradient_accumulation_steps=3)
        ),
        rows,
    ),
    "ema": Recipe(
        lambda: compiled(
            stack(), optimizer=keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.9)
        ),
        rows,
        callbacks=lambda: [SwapEMAWeights()],
    ),
    "ema_on_epoch": Recipe(
        lambda: compiled(
            stack(), optimizer=keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.9)
        ),
        rows,
        callbacks=lambda: [SwapEMAWeights(swap_on_epoch=True)],
    ),
    "lr_schedule": Recipe(
        lambda: compiled(
            stack(),
            optimizer=keras.optimizers.SGD(
                keras.optimizers.schedules.CosineDecay(0.1, 40), momentum=0.9
            ),
        ),
        rows,
        schedule=False,
    ),
    "steps_per_execution": Recipe(lambda: compiled(stack(), steps_per_execution=4), rows),
    "jit": Recipe(lambda: compiled(stack(), jit_compile=True), rows),
    "eager": Recipe(lambda: compiled(stack(), run_eagerly=True), rows),
    "auc": Recipe(
        lambda: compiled(
            keras.Sequential([keras.Input((12,)), layers.Dense(1, activation="sigmoid")]),
            loss="binary_crossentropy",
            metrics=[keras.metrics.AUC(), "binary_accuracy"],
        ),
        lambda n: (rows(n)[0], (rows(n)[1] > 0).astype("float32")[:, None]),
    ),
    "jit_mixed_precision": Recipe(
        lambda: compiled(
            stack("mixed_float16"),
            optimizer=keras.optimizers.LossScaleOptimizer(
                keras.optimizers.Adam(1e-2), initial_scale=2.0**20, dynamic_growth_steps=5
            ),
            jit_compile=True,
        ),
        rows,
    ),
    "jit_accumulation": Recipe(
        lambda: compiled(
            stack(),
            optimizer=keras.optimizers.Adam(1e-2, gradient_accumulation_steps=3),
            jit_compile=True,
        ),
        rows,
    ),
    "steady_jit": Recipe(lambda: steady(jit_compile=True), rows),
}
