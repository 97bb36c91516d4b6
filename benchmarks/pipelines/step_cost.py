"""What a step of 1 ms costs more on a `tf.data` pipeline that `fit` resumes at the very step."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.pipelines.batch_readers import ReadAhead
from distrib.data.pipelines.direct_reader import DirectReader
from distrib.data.pipelines.feed import Feed
from distrib.data.pipelines.passes import Passes

_STEPS = 100


def compare_steps(repeats: int) -> None:
    """Print the milliseconds of a step by each reader, beside Keras's own iterator.

    Args:
        repeats: Number of turns; ten times as many are taken.
    """
    rng = np.random.default_rng(0)
    x, y = rng.random((2000, 64), "float32"), rng.integers(0, 10, 2000)
    examples = tf.data.Dataset.from_tensor_slices((x, y)).repeat().shuffle(500, seed=3)
    pipeline = examples.batch(32).prefetch(2)
    weights = tf.random.normal([420, 420])

    @tf.function  # type: ignore[untyped-decorator]
    def step(iterator: Any) -> Any:
        features, _ = next(iterator)
        return tf.reduce_sum(features) + tf.reduce_sum(tf.matmul(weights, weights))

    iterators = {
        "Keras": iter(pipeline),
        "one device": iter(_feed(pipeline, lambda passes: DirectReader(passes, 1, True))),
        "several devices or ranks": iter(
            _feed(pipeline, lambda passes: _read_ahead(pipeline, passes))
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in iterators}
    for turn in range(10 * repeats + 1):
        for name, iterator in iterators.items():
            begin = time.perf_counter()
            for _ in range(_STEPS):
                step(iterator)
            if turn:
                times[name].append((time.perf_counter() - begin) / _STEPS * 1e3)
    print("\nA step on a tf.data pipeline, ms")
    for name, taken in times.items():
        ratio = median(taken) / median(times["Keras"])
        print(f"  {name:<26}{median(taken):7.3f}  min {min(taken):7.3f}  x {ratio:.2f}")


def _feed(pipeline: Any, reader_of: Callable[[Passes], Any]) -> Feed:
    reader = reader_of(Passes(pipeline))
    return Feed(pipeline, reader, pipeline.element_spec, True, [])


def _read_ahead(pipeline: Any, passes: Passes) -> ReadAhead:
    return ReadAhead(
        passes,
        pipeline.element_spec,
        savable=True,
        shuffles=1,
        skip_ends=True,
        once=False,
        keep=False,
    )
