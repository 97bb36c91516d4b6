"""What distrib costs on this machine's first GPU, or on the CPU if there is none.

    python benchmarks/gpu.py                       # 600 MB of variables, 200 steps an epoch

| line | side by side |
|---|---|
| snapshot | time that a save blocks training, and one copy of as many bytes from the device |
| step | a step of plain Keras, and one under `distrib.init()` with `BackupAndRestore` |

Both of a pair take turns in one process, for several rounds; the table gives medians and the ratio.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import distrib
from common.measuring import column_medians, seconds_of
from distrib.callbacks import BackupAndRestore
from distrib.state.build import build
from distrib.state.host_copies import HostBuffers
from distrib.state.training_state import TrainingState

WIDTH, BATCH = 2048, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=600, help="of all variables [600]")
    parser.add_argument("--steps", type=int, default=200, help="steps of an epoch [200]")
    parser.add_argument("--rounds", type=int, default=5, help="repeat N times [5]")
    args = parser.parse_args()
    distrib.init("local")
    device = "GPU:0" if tf.config.get_visible_devices("GPU") else "CPU:0"
    print(f"{device:12} {'baseline ms':>12} {'distrib ms':>12} {'ratio':>7}")
    show(
        "snapshot", [partial(copy, args.megabytes, device), snapshots(args.megabytes)], args.rounds
    )
    show("step", [partial(epoch, args.steps, False), partial(epoch, args.steps, True)], args.rounds)


def show(name: str, pair: list[Callable[[], float]], rounds: int) -> None:
    """Print a line of the table."""
    for measure in pair:
        measure()  # Builds graphs, and gets memory from the system.
    baseline, ours = column_medians([[measure() for measure in pair] for _ in range(rounds)])
    print(f"{name:12} {1e3 * baseline:12.2f} {1e3 * ours:12.2f} {ours / baseline:7.2f}")


def copy(megabytes: int, device: str) -> float:
    """Return the seconds of one copy from the device to host memory, pinned for a GPU."""
    with tf.device(device):
        content = tf.zeros(megabytes * 250_000)
    tf.test.experimental.sync_devices()
    with tf.device("CPU:0"):
        return seconds_of(lambda: tf.identity(content) if device != "CPU:0" else content + 0)


def snapshots(megabytes: int) -> Callable[[], float]:
    """Return a function that takes a snapshot of a model, and returns its seconds."""
    # Each weight has two slots of Adam's.
    layers = max(1, round(megabytes / (3 * 4 * WIDTH * WIDTH / 1e6)))
    model = dense(layers)
    build(model, (tf.TensorSpec((None, WIDTH)), tf.TensorSpec((None, WIDTH))))
    state, buffers = TrainingState(model, metrics=False), HostBuffers()
    return lambda: seconds_of(lambda: state.snapshot(buffers))


def epoch(steps: int, with_distrib: bool) -> float:
    """Return the seconds of a step in the second epoch of a `fit`."""
    model, seconds = dense(4), Clock()
    x = np.zeros((BATCH, WIDTH), np.float32)
    data = tf.data.Dataset.from_tensors((x, x)).repeat(steps)
    with tempfile.TemporaryDirectory() as run:
        backup = [BackupAndRestore(Path(run) / "b", resume="epoch")] if with_distrib else []
        model.fit(data, epochs=2, verbose=0, callbacks=[*backup, seconds])
    return seconds.of_last_epoch / steps


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Measures the last epoch, without what callbacks do at its end.

    `fit` goes on while a GPU still computes, so both times wait for it.
    """

    of_last_epoch = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        tf.test.experimental.sync_devices()
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        tf.test.experimental.sync_devices()
        self.of_last_epoch = time.perf_counter() - self._begun


def dense(layers: int) -> keras.Model:
    """Return a compiled model of `Dense` layers."""
    wide = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(layers)]
    model = keras.Sequential([keras.Input((WIDTH,)), *wide])
    model.compile("adam", "mse")
    return model


if __name__ == "__main__":
    main()
