"""The batches of a `keras.utils.PyDataset`, as a dataset that can be resumed at any step.

A `PyDataset` builds the batch of any number, so the position is (seed, epoch, step), as in
`dataset.py`, with batches in the place of examples: which numbers a step takes is a pure function
of these three (`py_dataset_order.py`), and no batch before the step is built.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

from distrib.data.arguments import checked_integer
from distrib.data.position import DatasetPosition
from distrib.data.py_dataset_order import BatchOrder, EvaluationOrder
from distrib.data.py_dataset_pool import BatchPool, naming_batch
from distrib.data.read_ahead import read_ahead
from distrib.data.resumable import ResumableDataset
from distrib.errors import ConfigurationError
from distrib.keras_compat.py_datasets import BATCHES_FOR_SPEC, spec_of, standardize_batch

PY_DATASET = "PyDataset"


class PyDatasetBatches(ResumableDataset):
    """The batches of a `PyDataset` that this process takes, one pass an epoch.

    Batches are built `max_queue_size` ahead by `workers` threads, or with `use_multiprocessing`
    processes, but never before the epoch that they belong to is drawn from.

    Args:
        py_dataset: The `PyDataset`.
        order: Which batches this process takes.
        seed: Seed of the order, 0 to 2**63 - 1.

    Attributes:
        py_dataset: As given.
        order: As given.
        seed: As given; may be set while no pass is in progress.
        endless: Always false: `steps_per_epoch` ends a pass over endless batches, too.

    Raises:
        ConfigurationError: If it has no batches, or has `use_multiprocessing` and cannot be
            pickled.
    """

    endless = False

    def __init__(self, py_dataset: Any, order: BatchOrder | EvaluationOrder, seed: int = 0) -> None:
        self.py_dataset = py_dataset
        self.order = order
        self.seed = seed
        self.epoch = 0
        self._position = DatasetPosition()
        self._pool: ThreadPoolExecutor | None = None
        # Before `__getitem__` opens a file here that could not be sent.
        processes = py_dataset.use_multiprocessing
        self._processes = BatchPool(py_dataset, self._workers) if processes else None
        first = itertools.islice(range(BATCHES_FOR_SPEC), num_batches_of(py_dataset))
        self._spec = spec_of([self.build(number) for number in first])
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False  # For the reason in `dataset.py`.
        passes = self._position.passes(endless=False)
        self._inner = passes.flat_map(self._pass).prefetch(1).with_options(options)
        super().__init__(self._inner._variant_tensor)

    def _inputs(self) -> list[Any]:
        return [self._inner]

    # For the reason in `dataset.py`.
    @tf.autograph.experimental.do_not_convert
    def _pass(self, epoch: Any, first: Any) -> Any:
        return tf.data.Dataset.from_generator(
            self._batches, args=(epoch, first), output_signature=self._spec
        )

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        numbers = self.order.numbers(self.seed, int(epoch), int(first))
        if self._processes is not None:
            self._processes.update(self.changing_attributes())
        # With processes, each thread waits for one of them.
        self._pool = ThreadPoolExecutor(self._workers, "distrib-batches")
        ahead = max(1, self.py_dataset.max_queue_size)
        return read_ahead(self._build_ahead, numbers, self._pool, ahead)

    def changing_attributes(self) -> dict[str, Any]:
        """Return the attributes of the `PyDataset` that may differ from epoch to epoch."""
        return {}

    @property
    def _workers(self) -> int:
        return max(1, self.py_dataset.workers)

    def _build_ahead(self, number: int) -> Any:
        if self._processes is None:
            return self.build(number)
        batch = self._processes.build(number)
        with naming_batch(self.py_dataset, number):
            return standardize_batch(batch)

    def stop_reading(self) -> None:
        """End the pass in progress, if it is not over, and wait until no batch is being built."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def build(self, number: int) -> Any:
        """Return a batch as Keras standardizes it: a dict or a tuple."""
        with naming_batch(self.py_dataset, number):
            return standardize_batch(self.py_dataset[number])

    @property
    def element_spec(self) -> Any:
        """Structure of `tf.TensorSpec`s that Keras derives from the first batches."""
        return self._spec

    @property
    def num_batches(self) -> int:
        """Number of steps in a full epoch."""
        return self.order.steps

    @property
    def every_rank_has_examples(self) -> bool:
        """Always true of an order for training."""
        return isinstance(self.order, BatchOrder)

    @functools.cached_property
    def _sizes(self) -> tuple[int, int]:
        """Examples in a batch, and in the last one."""
        first = examples_in(self.build(0))
        last = self.order.num_batches
        return first, first if last is None else examples_in(self.build(last - 1))

    def share(self, step: int) -> float:
        """Return the weight of this process's mean over its batch in the mean over all processes.

        If only the last batch has another size, each example of a step counts alike. Otherwise the
        sizes of the other processes' batches are not known here, and each batch counts alike.

        Args:
            step: Step of the epoch `epoch`.
        """
        order, shard = self.order, self.order.shard
        if shard.size == 1 or not isinstance(order, BatchOrder):
            return 1.0
        full, last = self._sizes
        numbers = [order.number(self.seed, self.epoch, step, rank) for rank in range(shard.size)]
        sizes = [
            last if order.num_batches is not None and number == order.num_batches - 1 else full
            for number in numbers
        ]
        return sizes[shard.rank] * shard.size / sum(sizes)

    def __len__(self) -> int:
        return self.num_batches

    def cardinality(self, name: str | None = None) -> Any:
        """Return the number of steps in a full epoch, also if the next pass is shorter."""
        return tf.constant(self.num_batches, tf.int64, name=name)

    def map(self, map_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Apply a function to every batch, as Keras does for `class_weight`."""
        return _SameNumber(self, self._inner.map(map_func, *args, **kwargs))

    def step_of(self, step: int, size: int) -> int:
        """Return the step after the same number of batches, rounded down."""
        return min(step * size // self.order.shard.size, self.num_batches)

    def seek(self, epoch: int, step: int) -> None:
        """Let the next pass start at a step of an epoch."""
        checked_integer("step", step, 0, self.num_batches)
        self._position.seek(checked_integer("epoch", epoch, 0), step)

    def fingerprint(self) -> dict[str, Any]:
        """Return the properties under which equal positions mean equal batches, as JSON values.

        Not what the batches hold: `__getitem__` may change the examples at random. The number of
        processes only if the epochs depend on it.
        """
        kind, order = type(self.py_dataset), self.order
        one_pass = isinstance(order, EvaluationOrder) or order.is_one_pass
        return {
            "source": PY_DATASET,
            "class": kind.__qualname__,
            "num_batches": order.num_batches,
            "structure": [
                {"path": "".join(f"[{part!r}]" for part in path), "spec": str(spec)}
                for path, spec in keras.tree.flatten_with_path(self._spec)
            ],
            "shuffle": isinstance(order, BatchOrder) and order.shuffle,
            "batches_per_epoch": None if one_pass else order.steps,
            "batches_per_step": None if one_pass else order.shard.size,
        }


class _SameNumber(tf.data.Dataset):
    """What becomes of batches, of which there are as many in a full epoch as before."""

    def __init__(self, batches: PyDatasetBatches, result: Any) -> None:
        self._batches, self._result = batches, result
        super().__init__(result._variant_tensor)

    def _inputs(self) -> list[Any]:
        return [self._result]

    @property
    def element_spec(self) -> Any:
        return self._result.element_spec

    def prefetch(self, buffer_size: int, name: str | None = None) -> Any:
        return _SameNumber(self._batches, self._result.prefetch(buffer_size, name=name))

    def cardinality(self, name: str | None = None) -> Any:
        return self._batches.cardinality(name)


def num_batches_of(py_dataset: Any) -> int | None:
    """Return how many batches a `PyDataset` has; `None` if they never end.

    Raises:
        ConfigurationError: If there are none.
    """
    count = py_dataset.num_batches
    if count is not None and count < 1:
        raise ConfigurationError(
            f"{type(py_dataset).__name__} has {count} batches; return the number of batches from "
            "`__len__`."
        )
    return None if count is None else int(count)


def examples_in(batch: Any) -> int:
    """Return the number of examples in a batch."""
    leaf = next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None)
    return int(leaf.shape[0]) if hasattr(leaf, "shape") else len(leaf)
