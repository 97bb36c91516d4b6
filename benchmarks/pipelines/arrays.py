"""Arrays in memory and on disk, and objects with random access, without `map`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.make_dataset import make_dataset
from pipelines.contenders import Contender, compare


class Examples:
    """Examples with random access."""

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


def compare_arrays(folder: Path, number: int, batch: int, repeats: int) -> None:
    """Print a table for each kind of source, beside `from_tensor_slices` with a full shuffle."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (number, 28, 28, 1), np.uint8)
    y = rng.integers(0, 10, number)

    def baseline(source: Any, read: Callable[..., Any] | None = None) -> Contender:
        dataset = tf.data.Dataset.from_tensor_slices(source).shuffle(len(source[1]))
        if read is not None:
            dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.batch(batch).prefetch(tf.data.AUTOTUNE)
        return Contender("tf.data", lambda: dataset)

    def random_access(examples: Examples) -> Contender:
        def read(index: Any, _: Any) -> Any:
            return tf.numpy_function(examples.__getitem__, [index], [tf.uint8, tf.int64])

        return baseline((np.arange(len(examples)), examples.y), read)

    def ours(source: Any) -> Contender:
        dataset = make_dataset(source, batch, shuffle=True, seed=1)
        return Contender("distrib", lambda: dataset)

    compare(f"{number} images in memory", [ours((x, y)), baseline((x, y))], repeats)
    stored = np.lib.format.open_memmap(str(folder / "x.npy"), "w+", x.dtype, x.shape)
    stored[:] = x
    compare(
        f"{number} images in a memmap (tf.data: in memory)",
        [ours((stored, y)), baseline((x, y))],
        repeats,
    )
    few = number // 5
    examples = Examples(x[:few], y[:few])
    compare(f"{few} by random access", [ours(examples), random_access(examples)], repeats)
    slow = SlowExamples(x[: few // 5], y[: few // 5])
    title = f"{few // 5} by random access, 1 ms an example"
    compare(title, [ours(slow), random_access(slow)], repeats)
