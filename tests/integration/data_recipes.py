"""Data of each row of the table in `docs/data.md`, all of the same examples, for `data_job.py`."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from data_examples import (
    BATCH,
    EXAMPLES,
    STEPS,
    WIDTH,
    Records,
    augment,
    of_member,
    parse_in_python,
    records,
    rows,
)


@tf.function
def parse(record: Any) -> Any:
    numbers = tf.io.decode_raw(record, tf.float32)
    return numbers[:WIDTH], tf.cast(numbers[WIDTH], tf.int64)


def of_image(example: Any) -> Any:
    image, label = example
    return np.ravel(image), np.int64(label)


def write_files(folder: Path) -> None:
    """Write the examples in every format."""
    import pyarrow
    import pyarrow.parquet
    from array_record.python.array_record_module import ArrayRecordWriter

    x, y = rows()
    np.save(folder / "x.npy", x)
    (folder / "raw").mkdir()
    gzip = tf.io.TFRecordOptions(compression_type="GZIP")
    halves = np.array_split(np.arange(EXAMPLES), 2)
    all_records = list(records())
    for number, half in enumerate(halves):
        name = f"{folder}/train-{number}"
        with (
            tf.io.TFRecordWriter(f"{name}.tfrecord") as plain,
            tf.io.TFRecordWriter(f"{name}.tfrecord.gz", gzip) as compressed,
            tarfile.open(f"{name}.tar", "w") as tar,
        ):
            writer = ArrayRecordWriter(f"{name}.array_record", "group_size:1")
            for i in half:
                plain.write(all_records[i])
                compressed.write(all_records[i])
                writer.write(all_records[i])
                member = tarfile.TarInfo(f"{i:04}.bin")
                member.size = len(all_records[i])
                tar.addfile(member, io.BytesIO(all_records[i]))
            writer.close()
        table = pyarrow.table({"record": [all_records[i] for i in half]})
        pyarrow.parquet.write_table(table, f"{name}.parquet", row_group_size=8)
    for i, (row, label) in enumerate(zip(x, y, strict=True)):
        path = folder / "images" / str(label) / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(row.reshape(4, 3, 1).astype("uint8")).numpy())


class Batches(keras.utils.PyDataset):
    """Batches by random access; `shuffled` ones are shuffled at the end of each epoch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.x, self.y = rows()
        self.order = np.arange(EXAMPLES)

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> Any:
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        return self.x[chosen], self.y[chosen]


class ShuffledBatches(Batches):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rng = np.random.default_rng(3)

    def on_epoch_end(self) -> None:
        self.rng.shuffle(self.order)


def batches(turned: int = 0) -> Iterator[Any]:
    """Yield batches without end; each epoch is that of the one before, `turned` by some rows."""
    x, y = rows()
    for epoch in itertools.count():
        for start in range(0, EXAMPLES, BATCH):
            chosen = (np.arange(start, min(start + BATCH, EXAMPLES)) + turned * epoch) % EXAMPLES
            yield x[chosen], y[chosen]


def shuffled() -> Any:
    return tf.data.Dataset.from_tensor_slices(rows()).shuffle(50, seed=2).batch(BATCH).prefetch(1)


def long() -> Any:
    """Return a pipeline that is long enough for Keras to draw from its iterator."""
    examples = tf.data.Dataset.from_tensor_slices(rows()).repeat(18)
    return examples.shuffle(50, seed=2).batch(BATCH).prefetch(3)


def repeated(dataset: Any) -> Any:
    """Return a pipeline whose epochs all are the first one of another pipeline."""
    batches = list(dataset)
    return tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=dataset.element_spec
    ).apply(tf.data.experimental.assert_cardinality(STEPS))


def of_python(shuffle: bool) -> Any:
    """Return a pipeline whose state TensorFlow cannot save."""
    x, y = rows()
    signature = tf.TensorSpec([WIDTH], tf.float32), tf.TensorSpec([], tf.int64)
    pipeline = tf.data.Dataset.from_generator(
        lambda: zip(x, y, strict=True), output_signature=signature
    )
    if shuffle:
        pipeline = pipeline.shuffle(50, seed=2)
    return pipeline.batch(BATCH).apply(tf.data.experimental.assert_cardinality(STEPS))


@dataclass(frozen=True)
class Recipe:
    """Arguments of `fit` for one kind of data.

    Attributes:
        fit: Returns them.
        like: Name of the recipe that gives the same batches. Defaults to itself.
        resume: Argument of `BackupAndRestore`. Defaults to that of its own.
        ranks: Whether several ranks can train on it.
    """

    fit: Callable[[Any, Path], dict[str, Any]]
    like: str | None = None
    resume: str | None = None
    ranks: bool = True


def made(source: Callable[[Path], Any], like: str | None = "arrays", **options: Any) -> Recipe:
    """Return a recipe of `cluster.dataset`."""

    def fit(cluster: Any, folder: Path) -> dict[str, Any]:
        arguments = {"batch_size": BATCH, "shuffle": True, "seed": 3, **options}
        return {"x": cluster.dataset(source(folder), **arguments)}

    return Recipe(fit, like)


def derived(derive: Callable[[Any], Any]) -> Recipe:
    """Return a recipe of what a method of a `cluster.dataset` returns."""

    def fit(cluster: Any, folder: Path) -> dict[str, Any]:
        return {"x": derive(cluster.dataset(rows(), BATCH, shuffle=True, seed=3))}

    return Recipe(fit)


def fit_py_dataset(make: Callable[[], Any]) -> Recipe:
    return Recipe(lambda cluster, folder: {"x": make()})


def pipeline(make: Callable[[], Any], resume: str | None = None) -> Recipe:
    return Recipe(lambda cluster, folder: {"x": make()}, resume=resume)


def validated(shuffle: Callable[[Any], Any]) -> Recipe:
    """Return a recipe that validates on some of a pipeline, shuffled anew each time."""

    def fit(cluster: Any, folder: Path) -> dict[str, Any]:
        x, y = rows()
        validation = shuffle(tf.data.Dataset.from_tensor_slices((x, y))).batch(BATCH).prefetch(2)
        return {
            **{"x": x, "y": y, "batch_size": BATCH},
            **{"validation_data": validation, "validation_steps": 2},
        }

    return Recipe(fit)


def generator(turned: int, resume: str) -> Recipe:
    def fit(cluster: Any, folder: Path) -> dict[str, Any]:
        return {"x": batches(turned), "steps_per_epoch": STEPS}

    return Recipe(fit, resume=resume, ranks=False)


def fit_arrays(**options: Any) -> Recipe:
    def fit(cluster: Any, folder: Path) -> dict[str, Any]:
        x, y = rows()
        return {"x": x, "y": y, "batch_size": BATCH, **options}

    return Recipe(fit)


def stream() -> Any:
    return tf.data.Dataset.from_tensor_slices(rows())


RECIPES: dict[str, Recipe] = {
    "fit_arrays": fit_arrays(),
    "fit_arrays_split": fit_arrays(validation_split=0.2, validation_batch_size=6),
    "fit_arrays_validation": fit_arrays(
        validation_data=tuple(column[:30] for column in rows()), validation_batch_size=15
    ),
    "py_dataset": fit_py_dataset(Batches),
    "py_dataset_shuffled": fit_py_dataset(ShuffledBatches),
    "py_dataset_workers": fit_py_dataset(lambda: Batches(workers=2)),
    "pipeline": pipeline(shuffled),
    "pipeline_long": pipeline(long),
    "pipeline_replay": pipeline(lambda: of_python(True), "replay"),
    "pipeline_epoch": pipeline(lambda: of_python(False), "epoch"),
    "generator_replay": generator(7, "replay"),
    "generator_epoch": generator(0, "epoch"),
    "workers": made(lambda folder: Records(), map=parse_in_python, num_workers=2),
    "workers_augmented": made(lambda folder: Records(), "augmented", map=augment, num_workers=2),
    "arrays": made(lambda folder: rows()),
    "memmap": made(lambda folder: (np.load(folder / "x.npy", mmap_mode="r"), rows()[1])),
    "random_access": made(lambda folder: Records(), map=parse_in_python),
    "augmented": made(lambda folder: Records(), None, map=augment),
    "tfrecord": made(lambda folder: f"{folder}/train-*.tfrecord", map=parse),
    "array_record": made(lambda folder: f"{folder}/train-*.array_record", map=parse),
    "parquet": made(
        lambda folder: f"{folder}/train-*.parquet",
        map=lambda row: parse_in_python(row["record"]),
    ),
    "tar": made(lambda folder: f"{folder}/train-*.tar", map=of_member),
    "gzip": made(lambda folder: f"{folder}/train-*.tfrecord.gz", None, shuffle="blocks", map=parse),
    "images": made(lambda folder: _image_folder(folder / "images"), None, map=of_image),
    "stream": made(lambda folder: stream(), None, shuffle_buffer=50),
    "blocks": made(lambda folder: f"{folder}/train-*.tfrecord", None, shuffle="blocks", map=parse),
    "take": derived(lambda train: train.skip(1).take(2)),
    "zip": derived(lambda train: train.zip(train).map(lambda a, b: a)),
    "repeat": Recipe(
        lambda cluster, folder: {
            "x": cluster.dataset(rows(), BATCH, shuffle=True, seed=3).repeat(),
            "steps_per_epoch": 3,
        }
    ),
    "validation": validated(lambda data: data.shuffle(50, seed=2)),
}

# Whose epochs differ: one that is resumed has the order of the first one, as all have in `like`.
RESUMED_IN_FIRST_ORDER: dict[str, Recipe] = {
    "pipeline_of_epochs": replace(
        pipeline(lambda: of_python(True), "epoch"), like="pipeline_of_first_epochs"
    ),
    "generator_of_epochs": replace(generator(7, "epoch"), like="generator_epoch"),
}
LIKE: dict[str, Recipe] = {
    "pipeline_of_first_epochs": pipeline(lambda: repeated(of_python(True)), "epoch"),
}
ALL: dict[str, Recipe] = {**RECIPES, **RESUMED_IN_FIRST_ORDER, **LIKE}

# The rows of the table, by their beginning, and the recipes that try them; others test the last.
TABLE: dict[str, list[str]] = {
    "arrays, tensors, pandas": ["fit_arrays", "fit_arrays_split", "fit_arrays_validation"],
    "a `PyDataset`": ["py_dataset", "py_dataset_workers"],
    "a `PyDataset` that": ["py_dataset_shuffled"],
    "a `tf.data` pipeline whose": ["pipeline", "pipeline_long"],
    "a `tf.data` pipeline with": ["pipeline_replay", "pipeline_epoch", "pipeline_of_epochs"],
    "a shuffled `tf.data` pipeline to validate": ["validation"],
    "a Python generator": ["generator_replay", "generator_epoch", "generator_of_epochs"],
    "a PyTorch": ["random_access"],
    "arrays in memory": ["arrays"],
    "`np.memmap`": ["memmap"],
    "any object": ["random_access", "augmented", "workers", "workers_augmented"],
    "a Hugging Face": ["random_access"],
    "TFRecord files": ["tfrecord", "blocks"],
    "TFRecord files, GZIP": ["gzip"],
    "ArrayRecord": ["array_record"],
    "Parquet": ["parquet"],
    "WebDataset": ["tar"],
    "a folder of images": ["images"],
    "a stream": ["stream"],
    "a `cluster.dataset` after `map`": ["take", "zip", "repeat"],
    "a `cluster.dataset` after `filter`": [],
}


def _image_folder(folder: Path) -> Any:
    from distrib.data import ImageFolderSource

    return ImageFolderSource(folder, color_mode="grayscale", image_size=(4, 3))
