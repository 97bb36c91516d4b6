"""Cost of the callbacks in the step loop of a tiny model, side by side with Keras's own.

    python benchmarks/callbacks.py

Both lists of callbacks take turns in one process, on the same data, for several rounds. The table
gives the median time per step and the ratio. The model is so small that callbacks dominate.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import distrib.callbacks
from common.measuring import column_medians, seconds_of
from distrib.data.make_dataset import make_dataset

STEPS, EPOCHS, ROUNDS, BATCH = 1000, 2, 5, 8
X = np.random.default_rng(0).normal(size=(STEPS * BATCH, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def build_model() -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model


def keras_data() -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(len(X)).batch(BATCH).prefetch(2)


def distrib_data() -> Any:
    return make_dataset((X, Y), BATCH, shuffle=True)


def common_callbacks(module: Any, run: Path) -> list[Any]:
    return [
        module.EarlyStopping("loss", patience=100),
        module.ReduceLROnPlateau("loss", patience=100),
        module.CSVLogger(str(run / "log.csv")),
        module.TerminateOnNaN(),
        module.ModelCheckpoint(str(run / "m.weights.h5"), save_weights_only=True),
    ]


CASES: dict[str, tuple[Callable[[Path], list[Any]], Callable[[Path], list[Any]], Any]] = {
    "no callbacks (data only)": (lambda run: [], lambda run: [], distrib_data),
    "the common five": (
        lambda run: common_callbacks(keras.callbacks, run),
        lambda run: common_callbacks(distrib.callbacks, run),
        keras_data,
    ),
    "BackupAndRestore, every epoch": (
        lambda run: [keras.callbacks.BackupAndRestore(str(run / "b"))],
        lambda run: [distrib.callbacks.BackupAndRestore(run / "b")],
        distrib_data,
    ),
    "BackupAndRestore, every 200 steps": (
        lambda run: [keras.callbacks.BackupAndRestore(str(run / "b"), save_freq=200)],
        lambda run: [distrib.callbacks.BackupAndRestore(run / "b", save_freq=200)],
        distrib_data,
    ),
}


def time_per_step(callbacks: Callable[[Path], list[Any]], data: Callable[[], Any]) -> float:
    """Return the seconds per step of a `fit`, after another `fit` that traced the functions."""
    model = build_model()
    model.fit(data(), verbose=0)
    with tempfile.TemporaryDirectory() as run:
        chosen = callbacks(Path(run))
        fit = partial(model.fit, epochs=EPOCHS, verbose=0, callbacks=chosen)
        return seconds_of(lambda: fit(data())) / (STEPS * EPOCHS)


def main() -> None:
    print(f"{'callbacks':34} {'Keras us/step':>14} {'distrib us/step':>16} {'ratio':>7}")
    for name, (keras_list, distrib_list, data) in CASES.items():
        keras_time, distrib_time = column_medians(
            (time_per_step(keras_list, keras_data), time_per_step(distrib_list, data))
            for _ in range(ROUNDS)
        )
        print(
            f"{name:34} {keras_time * 1e6:14.0f} {distrib_time * 1e6:16.0f} "
            f"{distrib_time / keras_time:7.2f}"
        )


if __name__ == "__main__":
    main()
