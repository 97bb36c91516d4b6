"""What the callbacks cost in the step loop of a tiny model, side by side with Keras's own.

    python benchmarks/callbacks.py

Both lists run in turn, several times, on the same data in one process; the table gives medians of
the time per step and their ratio. The model is so small that the callbacks are most of the time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from distrib import callbacks as ours
from distrib.data.make_dataset import make_dataset

STEPS, EPOCHS, ROUNDS, BATCH = 1000, 2, 5, 8
X = np.random.default_rng(0).normal(size=(STEPS * BATCH, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def model() -> keras.Model:
    tiny = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    tiny.compile("adam", "mse")
    return tiny


def plain() -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(len(X)).batch(BATCH).prefetch(2)


def resumable() -> Any:
    return make_dataset((X, Y), BATCH, shuffle=True)


def common(module: Any, run: Path) -> list[Any]:
    return [
        module.EarlyStopping("loss", patience=100),
        module.ReduceLROnPlateau("loss", patience=100),
        module.CSVLogger(str(run / "log.csv")),
        module.TerminateOnNaN(),
        module.ModelCheckpoint(str(run / "m.weights.h5"), save_weights_only=True),
    ]


CASES: dict[str, tuple[Callable[[Path], list[Any]], Callable[[Path], list[Any]], Any]] = {
    "no callbacks (data only)": (lambda run: [], lambda run: [], resumable),
    "the common five": (
        lambda run: common(keras.callbacks, run),
        lambda run: common(ours, run),
        plain,
    ),
    "BackupAndRestore, every epoch": (
        lambda run: [keras.callbacks.BackupAndRestore(str(run / "b"))],
        lambda run: [ours.BackupAndRestore(run / "b")],
        resumable,
    ),
    "BackupAndRestore, every 200 steps": (
        lambda run: [keras.callbacks.BackupAndRestore(str(run / "b"), save_freq=200)],
        lambda run: [ours.BackupAndRestore(run / "b", save_freq=200)],
        resumable,
    ),
}


def time_per_step(callbacks: Callable[[Path], list[Any]], data: Callable[[], Any]) -> float:
    """Seconds per step of a whole `fit` after one that traced everything."""
    trained = model()
    trained.fit(data(), verbose=0)
    with tempfile.TemporaryDirectory() as run:
        chosen = callbacks(Path(run))
        started = time.perf_counter()
        trained.fit(data(), epochs=EPOCHS, verbose=0, callbacks=chosen)
        return (time.perf_counter() - started) / (STEPS * EPOCHS)


def main() -> None:
    print(f"{'callbacks':34} {'Keras us/step':>14} {'distrib us/step':>16} {'ratio':>7}")
    for name, (theirs, mine, data) in CASES.items():
        rounds = [(time_per_step(theirs, plain), time_per_step(mine, data)) for _ in range(ROUNDS)]
        keras_time, distrib_time = (
            statistics.median(column) for column in zip(*rounds, strict=True)
        )
        print(
            f"{name:34} {keras_time * 1e6:14.0f} {distrib_time * 1e6:16.0f} "
            f"{distrib_time / keras_time:7.2f}"
        )


if __name__ == "__main__":
    main()
