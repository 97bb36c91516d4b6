"""`ExamplePool`: batches of examples that worker processes read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from distrib.data.arrays import Array
from distrib.data.examples import Examples, Leaves, of_part
from distrib.data.workers.pickling import Pickled
from distrib.data.workers.pool import WorkerPool
from distrib.errors import ConfigurationError

# A worker that is done early takes over from the others, so more parts than workers.
_PARTS_PER_WORKER = 2


def check_workers(
    num_workers: int,
    source: Any,
    map: Callable[..., Any] | None,
    num_parallel_reads: int | None,
) -> None:
    """Check that worker processes are possible, and of use.

    Raises:
        ConfigurationError: If not.
    """
    if sys.platform != "linux":
        raise ConfigurationError(f"`num_workers={num_workers}` needs Linux; leave it out.")
    if hasattr(map, "get_concrete_function"):
        raise ConfigurationError(
            f"`num_workers={num_workers}` is for Python code, but `map` is a tf.function, which "
            "runs on all CPUs without the interpreter's lock; leave `num_workers` out."
        )
    # Threads fetch what `__getitems__` returns for `shuffle="blocks"`.
    if num_parallel_reads is not None and not hasattr(source, "__getitems__"):
        raise ConfigurationError(
            f"`num_parallel_reads={num_parallel_reads}` counts threads, which read nothing with "
            f"`num_workers={num_workers}`; leave one of them out."
        )


class ExamplePool:
    """Reads examples in worker processes.

    Args:
        pickled: The dict of `source` and `map`.
        leaves: What an example looks like; see `Examples`.
        num_workers: Number of processes.

    Attributes:
        num_workers: Number of processes.
    """

    def __init__(self, pickled: Pickled, leaves: Leaves, num_workers: int) -> None:
        self.num_workers = num_workers
        self._leaves = leaves
        self._pool = WorkerPool(pickled, partial(_ReadExamples, leaves), num_workers)

    def read(
        self, index: Sequence[int], epoch: int, seed: int, raw: Mapping[int, Any] | None
    ) -> list[Array]:
        """Return the examples at `index`, stacked, one array for each leaf.

        The arguments are those of `Examples.read_many`.

        Raises:
            RuntimeError: If one cannot be read, or a worker dies; names the example.
        """
        batch = [np.empty((len(index), *shape), dtype) for _, shape, dtype in self._leaves]
        size = -(-len(index) // (_PARTS_PER_WORKER * self.num_workers)) or 1
        parts = []
        for start in range(0, len(index), size):
            part = slice(start, start + size)
            request = index[part], epoch, seed, of_part(raw, part)
            parts.append(self._pool.submit(request, partial(_fill, batch, part)))
        for future in parts:
            future.result()
        return batch


class _ReadExamples:
    """The task of the workers; see `Task`."""

    def __init__(self, leaves: Leaves, objects: Mapping[str, Any]) -> None:
        self._examples = Examples(objects["source"], objects["map"], leaves)

    def __call__(self, request: Any, started: Callable[[int], None]) -> list[Array]:
        index, epoch, seed, raw = request
        examples = self._examples.read_many(index, epoch, seed, raw, started)
        return [np.stack(column) for column in zip(*examples, strict=True)]


def _fill(batch: list[Array], part: slice, columns: list[Array]) -> None:
    for whole, column in zip(batch, columns, strict=True):
        whole[part] = column
