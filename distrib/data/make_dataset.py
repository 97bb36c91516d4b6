"""`make_dataset`, which `cluster.dataset` calls: checks its arguments and builds a `Dataset`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from distrib.data.arguments import checked_integer
from distrib.data.batches import SourceBatches
from distrib.data.dataset import Dataset
from distrib.data.examples import takes_rng
from distrib.data.files.formats import source_of_files
from distrib.data.order import MAX_EXAMPLES, Order, Shard, leaves_a_replica_empty
from distrib.data.sources import make_source
from distrib.errors import ConfigurationError


def make_dataset(
    source: Any,
    batch_size: int,
    shuffle: bool | Literal["blocks"] = False,
    seed: int = 0,
    *,
    map: Callable[..., Any] | None = None,
    drop_remainder: bool = False,
    num_parallel_reads: int | None = None,
    shuffle_buffer: int | None = None,
    pad_last_batch: bool | None = None,
    num_workers: int = 0,
    num_replicas: int | None = None,
    rank: int = 0,
    size: int = 1,
) -> Dataset:
    """Return a dataset of global batches that can be resumed at any step.

    Args:
        source: The examples, as one of

            - arrays in memory: NumPy arrays, tensors, pandas objects, lists of numbers, alone or
              nested in tuples and dicts, such as `(x, y)`, `(x, y, sample_weight)` and
              `({"image": x1, "text": x2}, y)`, all with the same first dimension;
            - the same with arrays on disk: `np.memmap`, HDF5 and Zarr;
            - an object with `__len__` and `__getitem__` whose items are single examples;
            - a path, URL or pattern of files, such as `"gs://bucket/train-*.tfrecord"`: TFRecord
              (also `.tfrecord.gz`), ArrayRecord, Parquet and WebDataset's tar files, or a folder of
              images with a sub-folder for each class; see `distrib.data` for their examples;
            - a `tf.data.Dataset` of single examples with a known cardinality, which yields the
              same examples in the same order each time.
        batch_size: Number of examples in a global batch, over all replicas.
        shuffle: Whether to shuffle each epoch anew, in an order derived from `seed` and the epoch
            number. Pass `True` for training data; see Notes. `"blocks"` shuffles blocks of
            consecutive examples, and the examples of some 100 blocks among each other, so that
            files on disk and in object stores are read a few MiB at once. (In memory, and for a
            `tf.data.Dataset`, it is the same as `True`.) Defaults to `False`.
        seed: Seed of the order and of the `rng` passed to `map`, 0 to 2**63 - 1. Defaults to `0`.
        map: Python function that turns an example of the source into the example that the model
            gets. If it has a parameter `rng`, it is passed a `np.random.Generator` seeded by
            (seed, epoch, index of the example), so that augmentation is the same after a resume.
            Called from several threads at once. Decorate a function of TensorFlow's operations with
            `tf.function`, and it becomes part of the pipeline, which is much faster.
            Not for a `tf.data.Dataset`. Defaults to `None`.
        drop_remainder: Whether to drop the last batch if it is not full. Defaults to `False`.
        num_parallel_reads: Number of examples (of batches, for arrays on disk) to read in
            parallel. Only for sources that Python reads. Defaults to `None`: twice the number of
            CPUs, at most 8.
        shuffle_buffer: Number of examples to shuffle among. Only for a `tf.data.Dataset`. Defaults
            to `None`: all examples, at most 10,000.
        pad_last_batch: Whether the last batch is padded if it would leave a replica empty, as for
            training; see Notes. Defaults to `None`, for `shuffle`.
        num_workers: Number of processes, in each rank, that run `map` and `__getitem__`. They pay
            if this code holds Python's global interpreter lock, as code in Python does; the
            examples are the same. Everything must be picklable; functions and classes of the script
            are. Only on Linux. Defaults to `0`: threads of this process run it.
        num_replicas: Copies of the model that share a global batch, over all processes. Defaults
            to `None`: one a process.
        rank: This process's number in the job, 0 to `size - 1`. Defaults to `0`.
        size: Number of processes that share a global batch. Each must make the same dataset with
            its own `rank`; which examples make up a global batch depends on neither. Defaults to
            `1`.

    Returns:
        A `Dataset`. Its batches have the structure of an example; each tensor has shape
        `(examples, ...)`, with the shape of the example behind the batch dimension. Arrays keep
        their dtype; Python's ints become int64, its floats float32, its strings `tf.string`.

    Raises:
        ConfigurationError: If an argument is invalid. Errors while reading (an example that cannot
            be read, or whose shape differs from that of example 0) are a `tf.errors.OpError` whose
            message names the example.

    Notes:
        A batch too small to give each replica an example makes batch normalization produce NaN.
        With `shuffle=True` such a last batch is padded to a multiple of `num_replicas` with its own
        first examples. With `shuffle=False` it is not padded, so that metrics are exact, and a
        process that has none of its examples skips it.

    Example:

    ```python
    train = make_dataset((x, y), batch_size=128, shuffle=True, seed=7)
    model.fit(train, validation_data=make_dataset((val_x, val_y), batch_size=256), epochs=10)
    ```
    """
    if isinstance(shuffle, str) and shuffle != "blocks":
        raise ConfigurationError(f"`shuffle={shuffle!r}` is neither True, False nor 'blocks'.")
    batch_size = checked_integer("batch_size", batch_size, 1)
    seed = checked_integer("seed", seed, 0, 2**63 - 1)
    size = checked_integer("size", size, 1)
    rank = checked_integer("rank", rank, 0, size - 1)
    num_replicas = _checked_replicas(num_replicas, size)
    if num_parallel_reads is not None:
        num_parallel_reads = checked_integer("num_parallel_reads", num_parallel_reads, 1)
    if shuffle_buffer is not None:
        shuffle_buffer = checked_integer("shuffle_buffer", shuffle_buffer, 1)
    pads = bool(shuffle) if pad_last_batch is None else pad_last_batch
    if pads and leaves_a_replica_empty(batch_size, num_replicas, size):
        raise ConfigurationError(
            f"`batch_size={batch_size}` does not give each of {num_replicas} replicas in {size} "
            f"{'process' if size == 1 else 'processes'} examples; choose a multiple of "
            f"{num_replicas}."
        )
    if isinstance(source, Dataset):
        raise ConfigurationError("`source` is a dataset of batches already; use it as it is.")
    num_workers = checked_integer("num_workers", num_workers, 0)
    if map is not None and not callable(map):
        raise ConfigurationError(f"`map={map!r}` must be a function of one example.")
    if isinstance(source, str | os.PathLike):
        source = source_of_files(source)
    if shuffle is True and getattr(source, "sequential", False):
        raise ConfigurationError(
            f"`shuffle=True`: a {type(source).__name__} can only be read from the start of each "
            'file; use `shuffle="blocks"`, or decompress the files.'
        )
    examples = make_source(source, map, num_parallel_reads, shuffle_buffer, num_workers)
    if examples.num_examples > MAX_EXAMPLES:
        raise ConfigurationError(
            f"`source` has {examples.num_examples} examples; 2**48 ({MAX_EXAMPLES}) are the limit."
        )
    order = Order(
        num_examples=examples.num_examples,
        batch_size=batch_size,
        shuffle=bool(shuffle),
        seed=seed,
        drop_remainder=bool(drop_remainder),
        num_replicas=num_replicas,
        shard=Shard(rank, size),
        pad_last_batch=pads,
        blocks=examples.blocks() if shuffle == "blocks" else None,
    )
    if order.num_batches == 0:
        raise ConfigurationError(
            f"`batch_size={batch_size}` with `drop_remainder=True` leaves no batch of "
            f"{examples.num_examples} examples; choose a smaller batch size."
        )
    functions = {"map": map, "source": type(source)} if map else {"source": type(source)}
    return Dataset(SourceBatches(examples, order, functions, map is not None and takes_rng(map)))


def _checked_replicas(num_replicas: int | None, size: int) -> int:
    if num_replicas is None:
        return size
    num_replicas = checked_integer("num_replicas", num_replicas, 1)
    if num_replicas % size:
        raise ConfigurationError(
            f"`num_replicas={num_replicas}` cannot be divided evenly among `size={size}` "
            f"processes; pass the number of all replicas, a multiple of {size}."
        )
    return num_replicas
