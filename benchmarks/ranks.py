"""What a train step costs on two Horovod ranks, side by side with what it cannot do without.

    python benchmarks/ranks.py

- `loop`: a hand-written loop around one `tf.function`: gradients, one `hvd.grouped_allreduce`,
  `optimizer.apply`. No callbacks, no metrics but the loss, nothing is checked.
- `bare fit`: `model.fit` of Keras 3 with an optimizer whose `apply` does the same allreduce.
- `distrib`: `model.fit` with `cluster.optimizer` and `cluster.dataset`.
- `upstream`: Horovod's own `DistributedOptimizer`, on legacy Keras, if `tf-keras` is installed.

The first two run without distrib, and so with Horovod's own settings; upstream needs another Keras.
So there are three kinds of jobs, in turn, several times. Medians over all of them are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

WARM, STEPS, BATCH = 20, 150, 32
RANKS, ROUNDS = 2, 3
MODELS = ("mlp", "convnet", "large mlp")
LAUNCHER = Path(sysconfig.get_path("scripts")) / "distrib"


def examples(name: str) -> tuple[np.ndarray, np.ndarray]:
    """As many as one fit needs, on all ranks."""
    rng = np.random.default_rng(0)
    count = (WARM + STEPS) * BATCH * RANKS
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
        """Times the steps that follow the first ones."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == WARM - 1:
                self.started = time.perf_counter()
            if batch == WARM + STEPS - 1:
                self.seconds = (time.perf_counter() - self.started) / STEPS

    return Stopwatch()


def fit(keras: Any, model: Any, data: Any) -> float:
    watch = stopwatch(keras)
    model.fit(data, shuffle=False, verbose=0, callbacks=[watch])
    return float(watch.seconds)


def own_data(x: Any, y: Any, rank: int) -> Any:
    import tensorflow as tf

    shard = tf.data.Dataset.from_tensor_slices((x[rank::RANKS], y[rank::RANKS]))
    return shard.shuffle(len(x)).batch(BATCH).prefetch(tf.data.AUTOTUNE)


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

    iterator = iter(own_data(*examples(name), hvd.rank()))
    started = 0.0
    for number in range(WARM + STEPS):
        if number == WARM:
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
    return fit(keras, model, own_data(*examples(name), hvd.rank()))


def with_distrib(cluster: Any, keras: Any, name: str) -> float:
    model = build(keras, name)
    model.compile(
        cluster.optimizer(keras.optimizers.Adam()),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = cluster.dataset(examples(name), BATCH * RANKS, shuffle=True)
    return fit(keras, model, data)


def upstream(hvd: Any, keras: Any, name: str) -> float:
    model = build(keras, name)
    model.compile(
        hvd.DistributedOptimizer(keras.optimizers.Adam()),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return fit(keras, model, own_data(*examples(name), hvd.rank()))


def rank_of_plain(name: str) -> dict[str, Callable[[], float]]:
    import horovod.tensorflow as hvd
    import keras

    hvd.init()
    return {
        "loop": lambda: loop(hvd, keras, name),
        "bare fit": lambda: bare_fit(hvd, keras, name),
    }


def rank_of_distrib(name: str) -> dict[str, Callable[[], float]]:
    import keras

    import distrib

    cluster = distrib.init()
    return {"distrib": lambda: with_distrib(cluster, keras, name)}


def rank_of_upstream(name: str) -> dict[str, Callable[[], float]]:
    import horovod.tensorflow.keras as hvd
    import tf_keras

    hvd.init()
    return {"upstream": lambda: upstream(hvd, tf_keras, name)}


KINDS = {"plain": rank_of_plain, "distrib": rank_of_distrib, "upstream": rank_of_upstream}


def job(kind: str, name: str, folder: Path) -> dict[str, list[float]]:
    """Start the ranks of one job, and return the chief's times."""
    report = folder / "times.json"
    legacy = {"TF_USE_LEGACY_KERAS": "1"} if kind == "upstream" else {}
    command = [str(LAUNCHER), "run", "-np", str(RANKS), __file__, "--rank", kind]
    command += ["--model", name, "--report", str(report)]
    subprocess.run(command, env={**os.environ, **legacy}, check=True)
    return dict(json.loads(report.read_text()))


def table(name: str, times: dict[str, list[float]]) -> Iterator[str]:
    yield f"\n{name}: batch {BATCH} on each of {RANKS} ranks"
    yield f"{'':12}{'ms/step':>10}{'best':>10}{'distrib takes':>16}"
    middle = {case: statistics.median(values) for case, values in times.items()}
    for case, values in times.items():
        ratio = middle["distrib"] / middle[case]
        yield f"{case:12}{middle[case] * 1e3:10.3f}{min(values) * 1e3:10.3f}{ratio:15.3f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=4, help="of each kind")
    parser.add_argument("--model", choices=MODELS, help="only this one")
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
        print("without upstream's optimizer: `pip install tf-keras` to compare with it, too")
    with tempfile.TemporaryDirectory() as folder:
        for name in [args.model] if args.model else MODELS:
            times: dict[str, list[float]] = {}
            for kind in kinds * args.jobs:
                for case, values in job(kind, name, Path(folder)).items():
                    times.setdefault(case, []).extend(values)
            print("\n".join(table(name, times)), flush=True)


if __name__ == "__main__":
    main()
