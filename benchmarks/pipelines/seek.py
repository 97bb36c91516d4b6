"""Seconds to the first batch from the middle of many files, whose records are not decoded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from distrib.data import TFRecordSource
from distrib.data.make_dataset import make_dataset
from pipelines.contenders import load_grain

_RECORDS, _BYTES = 2500, 100_000


def compare_seek(folder: Path, gigabytes: float, batch: int) -> None:
    """Print the seconds. All files are hard links of one of 250 MB, so all of it is in memory."""
    files = max(2, round(gigabytes * 1e9 / _RECORDS / _BYTES))
    record = os.urandom(_BYTES)
    with tf.io.TFRecordWriter(str(folder / "0.tfrecord")) as writer:
        for _ in range(_RECORDS):
            writer.write(record)
    names = [str(folder / f"{i}.tfrecord") for i in range(files)]
    for name in names[1:]:
        os.link(names[0], name)
    print(f"\nfirst batch from the middle of {files * _RECORDS * _BYTES / 1e9:.1f} GB")
    started = time.perf_counter()
    source = TFRecordSource(names)
    _report("distrib, the index, once", started)
    started = time.perf_counter()
    TFRecordSource(names)
    _report("distrib, the index, at later starts", started)
    middle = len(source) // 2 // batch
    for shuffle in (True, "blocks"):
        dataset = make_dataset(source, batch, shuffle=shuffle, seed=1)
        dataset.seek(0, middle)
        _first(f"distrib, shuffle={shuffle!r}", lambda dataset=dataset: dataset)
    records = tf.data.TFRecordDataset(names).batch(batch)
    _first("tf.data, skip", lambda: records.skip(middle))
    if grain := load_grain():
        from array_record.python.array_record_module import ArrayRecordWriter

        first = str(folder / "0.array_record")
        other = ArrayRecordWriter(first, "group_size:1")
        for _ in range(_RECORDS):
            other.write(record)
        other.close()
        copies = [first.replace("0.", f"{i}.") for i in range(files)]
        for name in copies[1:]:
            os.link(first, name)

        def shuffled() -> Any:
            source = grain.sources.ArrayRecordDataSource(copies)
            examples = grain.MapDataset.source(source).shuffle(seed=1)[middle * batch :]
            return examples.batch(batch)

        _first("grain on ArrayRecord, shuffled", lambda: map(shuffled().__getitem__, range(1)))


def _first(name: str, batches: Callable[[], Any]) -> None:
    started = time.perf_counter()
    next(iter(batches()))
    _report(name, started)


def _report(name: str, started: float) -> None:
    print(f"  {name:<44} {time.perf_counter() - started:>10.3f} s", flush=True)
