"""Cost of a train step on two Horovod ranks, side by side with steps that do only the necessary.

    python benchmarks/ranks.py

- `loop`: a hand-written loop around one `tf.function`: gradients, one `hvd.grouped_allreduce`,
  `optimizer.apply`. It has no callbacks, no checks, and the loss as its only metric.
- `bare fit`: `model.fit` of Keras 3 with an optimizer whose `apply` does the same allreduce.
- `distrib`: `model.fit` with `cluster.optimizer` and `cluster.dataset`.
- `distrib xla`: the same with `jit_compile=True`, which compiles all but the allreduce.
- `upstream`: Horovod's own `DistributedOptimizer`, on legacy Keras, if `tf-keras` is installed.

The first two run without distrib, and thus with Horovod's own settings; upstream needs legacy
Keras. Therefore three kinds of jobs take turns. The table compares medians over all jobs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from common.measuring import LAUNCHER

WARMUP_STEPS, STEPS, BATCH = 20, 150, 32
RANKS, ROUNDS = 2, 3
MODELS = ("mlp", "convnet", "large mlp")


def examples(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the examples that one fit needs, of all ranks."""
    rng = np.random.default_rng(0)
    count = (WARMUP_STEPS + STEPS) * BATCH * RANKS
    shape = (count, 16, 16, 1) if name == "convnet" else (count, 64)
    return rng.random(shape, np.float32), rng.integers(10, size=count)


def build(keras: Any, name: str) -> Any:
    layers = keras.layers
    if name == "convnet":
        return keras.Sequential(
            [
                keras.Input((16, 16, 1)),
                layers.Conv2D(32, 3, activation="relu"),
                layers.Conv2D(64, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(128, activation="relu"),
                layers.Dense(10),
            ]
        )
    width, depth = (1024, 4) if name == "large mlp" else (128, 2)
    hidden = [layers.Dense(width, activation="relu") for _ in range(depth)]
    return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)])


def stopwatch(keras: Any) -> Any:
    class Stopwatch(keras.callbacks.Callback):
        """Times the steps after the warm-up."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == WARMUP_STEPS - 1:
                self.started = time.perf_counter()
            if batch == WARMUP_STEPS + STEPS - 1:
                self.seconds = (time.perf_counter() - self.started) / STEPS

    return Stopwatch()


def fit(keras: Any, model: Any, data: Any) -> float:
    watch = stopwatch(keras)
    model.fit(data, shuffle=False, verbose=0, callbacks=[watch])
    return float(watch.seconds)


def shard(x: Any, y: Any, rank: int) -> Any:
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x[rank::RANKS], y[rank::RANKS]))
    return data.shuffle(len(x)).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def loop(hvd: Any, keras: Any, name: str) -> float:
    import tensorflow as tf

    model, optimizer = build(keras, name), keras.optimizers.Adam()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    total = tf.Variable(0.0)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(iterator: Any) -> None:
        x, y = next(iterator)
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(hvd.grouped_allreduce(gradients), model.trainable_variables)
        total.assign_add(loss)

    iterator = iter(shard(*examples(name), hvd.rank()))
    started = 0.0
    for number in range(WARMUP_STEPS + STEPS):
        if number == WARMUP_STEPS:
            total.numpy()
            started = time.perf_counter()
        step(iterator)
    total.numpy()
    return (time.perf_counter() - started) / STEPS


def bare_fit(hvd: Any, keras: Any, name: str) -> float:
    class Adam(keras.optimizers.Adam):
        def apply(self, grads: Any, trainable_variables: Any = None) -> None:
            super().apply(hvd.grouped_allreduce(list(grads)), trainable_variables)

    model = build(keras, name)
    model.compile(Adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return fit(keras, model, shard(*examples(name), hvd.rank()))


def with_distrib(cluster: Any, keras: Any, name: str, jit_compile: bool = False) -> float:
    model = build(keras, name)
    model.compile(
        cluster.optimizer(keras.optimizers.Adam()),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    data = cluster.dataset(examples(name), BATCH * RANKS, shuffle=True)
    return fit(keras, model, data)


def upstream(hvd: Any, keras: Any, name: str) -> float:
    model = build(keras, name)
    model.compile(
        hvd.DistributedOptimizer(keras.optimizers.Adam()),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return fit(keras, model, shard(*examples(name), hvd.rank()))


def plain_cases(name: str) -> dict[str, Callable[[], float]]:
    import horovod.tensorflow as hvd
    import keras

    hvd.init()
    return {
        "loop": lambda: loop(hvd, keras, name),
        "bare fit": lambda: bare_fit(hvd, keras, name),
    }


def distrib_cases(name: str) -> dict[str, Callable[[], float]]:
    import keras

    import distrib

    cluster = distrib.init()
    return {
        "distrib": lambda: with_distrib(cluster, keras, name),
        "distrib xla": lambda: with_distrib(cluster, keras, name, jit_compile=True),
    }


def upstream_cases(name: str) -> dict[str, Callable[[], float]]:
    import horovod.tensorflow.keras as hvd
    import tf_keras

    hvd.init()
    return {"upstream": lambda: upstream(hvd, tf_keras, name)}


KINDS = {"plain": plain_cases, "distrib": distrib_cases, "upstream": upstream_cases}


def run_job(kind: str, name: str, folder: Path) -> dict[str, list[float]]:
    """Run the ranks of one job, and return the chief's seconds per step."""
    report = folder / "times.json"
    legacy = {"TF_USE_LEGACY_KERAS": "1"} if kind == "upstream" else {}
    command = [str(LAUNCHER), "run", "-np", str(RANKS), __file__, "--rank", kind]
    command += ["--model", name, "--report", str(report)]
    subprocess.run(command, env={**os.environ, **legacy}, check=True)
    return dict(json.loads(report.read_text()))


def table(name: str, times: dict[str, list[float]]) -> Iterator[str]:
    yield f"\n{name}: batch {BATCH} on each of {RANKS} ranks"
    yield f"{'':12}{'ms/step':>10}{'best':>10}{'distrib takes':>16}{'with XLA':>11}"
    medians = {case: statistics.median(values) for case, values in times.items()}
    for case, values in times.items():
        ratios = [medians[ours] / medians[case] for ours in ("distrib", "distrib xla")]
        columns = f"{medians[case] * 1e3:10.3f}{min(values) * 1e3:10.3f}"
        yield f"{case:12}{columns}{ratios[0]:15.3f}x{ratios[1]:10.3f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=4, help="run N jobs of each kind [4]")
    parser.add_argument("--model", choices=MODELS, help="measure one model [all]")
    parser.add_argument("--rank", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        cases = KINDS[args.rank](args.model)
        seconds = {case: [run() for _ in range(ROUNDS)] for case, run in cases.items()}
        if os.environ["HOROVOD_RANK"] == "0":
            args.report.write_text(json.dumps(seconds))
        return
    kinds = list(KINDS)
    if importlib.util.find_spec("tf_keras") is None:
        kinds.remove("upstream")
        print("skipped upstream: `pip install tf-keras` to compare with Horovod's optimizer")
    with tempfile.TemporaryDirectory() as folder:
        for name in [args.model] if args.model else MODELS:
            times: dict[str, list[float]] = {}
            for kind in kinds * args.jobs:
                for case, values in run_job(kind, name, Path(folder)).items():
                    times.setdefault(case, []).extend(values)
            print("\n".join(table(name, times)), flush=True)


if __name__ == "__main__":
    main()
