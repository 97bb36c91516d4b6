"""Speed of `cluster.dataset` next to `from_tensor_slices(...).shuffle(n).batch(b).prefetch()`.

Prints the seconds of a shuffled epoch of both for each kind of source. The two take turns in one
process, so other load on the machine affects both. The ratio is the ratio of the medians.

    python benchmarks/input_pipeline.py --examples 60000 --batch-size 128 --repeats 7
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from common.measuring import column_medians, seconds_of
from distrib.data.make_dataset import make_dataset


class Examples:
    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.x[index], self.y[index]


class SlowExamples(Examples):
    """Examples that each take 1 ms to read, as on network storage."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        time.sleep(0.001)
        return super().__getitem__(index)


def epoch_seconds(dataset: Any) -> float:
    return seconds_of(lambda: deque(dataset, maxlen=0))


def compare(name: str, ours: Any, baseline: Any, examples: int, repeats: int) -> None:
    epoch_seconds(ours), epoch_seconds(baseline)  # The first pass builds the iterators' graphs.
    times = [(epoch_seconds(ours), epoch_seconds(baseline)) for _ in range(repeats)]
    a, b = column_medians(times)
    spread = [f"{min(column):.3f}-{max(column):.3f}" for column in zip(*times, strict=True)]
    print(
        f"{name:<34} {examples:>8} {a:>8.3f} ({spread[0]}) {b:>8.3f} ({spread[1]}) {a / b:>7.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=60_000, help="use N examples [60000]")
    parser.add_argument("--batch-size", type=int, default=128, help="batch size [128]")
    parser.add_argument("--repeats", type=int, default=7, help="time N epochs of each [7]")
    args = parser.parse_args()
    n, batch = args.examples, args.batch_size
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (n, 28, 28, 1), np.uint8)
    y = rng.integers(0, 10, n)

    def baseline(source: Any, read: Callable[..., Any] | None = None) -> Any:
        dataset = tf.data.Dataset.from_tensor_slices(source)
        dataset = dataset.shuffle(len(source[1]))
        if read is not None:
            dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)
        return dataset.batch(batch).prefetch(tf.data.AUTOTUNE)

    def reader(examples: Examples) -> Callable[..., Any]:
        def read(index: Any, _: Any) -> Any:
            return tf.numpy_function(examples.__getitem__, [index], [tf.uint8, tf.int64])

        return read

    def ours(source: Any, **kwargs: Any) -> Any:
        return make_dataset(source, batch, shuffle=True, seed=1, **kwargs)

    print(f"{'source':<34} {'examples':>8} {'distrib, s':>22} {'tf.data, s':>22} {'ratio':>7}")
    compare("arrays in memory", ours((x, y)), baseline((x, y)), n, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        stored = np.lib.format.open_memmap(f"{folder}/x.npy", "w+", x.dtype, x.shape)
        stored[:] = x
        compare("memmap (tf.data: in memory)", ours((stored, y)), baseline((x, y)), n, args.repeats)
    few = n // 5
    examples = Examples(x[:few], y[:few])
    indices = (np.arange(few), y[:few])
    compare("random access", ours(examples), baseline(indices, reader(examples)), few, args.repeats)
    slow = SlowExamples(x[: few // 5], y[: few // 5])
    indices = (np.arange(len(slow)), slow.y)
    compare(
        "random access, 1 ms an example",
        ours(slow),
        baseline(indices, reader(slow)),
        len(slow),
        args.repeats,
    )


if __name__ == "__main__":
    main()
