"""100 KB records with a JPEG image each, decoded in `map`: as TFRecord and as ArrayRecord files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.make_dataset import make_dataset
from pipelines.contenders import Contender, compare, load_grain

FILES, DIFFERENT = 4, 64
FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
}


def parse(record: Any) -> Any:
    """Return the image, float32 of shape `[224, 224, 3]`, and the label."""
    features = tf.io.parse_single_example(record, FEATURES)
    image = tf.io.decode_jpeg(features["image"], 3)
    return tf.image.resize(image, (224, 224)), features["label"]


def serialized(number: int) -> Iterator[bytes]:
    """Yield records of about 100 KB; only `DIFFERENT` of the images differ."""
    rng = np.random.default_rng(0)

    def image() -> bytes:
        smooth = tf.image.resize(rng.normal(128, 60, (24, 32, 3)), (375, 500), "bicubic")
        pixels = np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)
        return bytes(tf.io.encode_jpeg(pixels, quality=90).numpy())

    images = [image() for _ in range(min(number, DIFFERENT))]
    for i in range(number):
        feature = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[images[i % DIFFERENT]])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[i])),
        }
        features = tf.train.Features(feature=feature)
        yield tf.train.Example(features=features).SerializeToString()


def write(folder: Path, number: int) -> None:
    """Write the records to `FILES` TFRecord files and, with grain, as many ArrayRecord files."""
    writers = [tf.io.TFRecordWriter(str(folder / f"{i}.tfrecord")) for i in range(FILES)]
    if load_grain():
        from array_record.python.array_record_module import ArrayRecordWriter

        others = [
            ArrayRecordWriter(str(folder / f"{i}.array_record"), "group_size:1")
            for i in range(FILES)
        ]
    for i, record in enumerate(serialized(number)):
        writers[i % FILES].write(record)
        if load_grain():
            others[i % FILES].write(record)
    for writer in (*writers, *(others if load_grain() else ())):
        writer.close()


def distrib_contenders(pattern: str, batch: int, **options: Any) -> list[Contender]:
    """Return our contenders: shuffled as a whole, and in blocks."""

    def contender(name: str, shuffle: Any) -> Contender:
        dataset = make_dataset(
            pattern, batch, shuffle=shuffle, seed=1, map=tf.function(parse), **options
        )
        return Contender(name, lambda: dataset)

    return [
        contender("distrib, shuffle=True", True),
        contender('distrib, shuffle="blocks"', "blocks"),
    ]


def tf_data(files: Any, read: Callable[[Any], Any], batch: int) -> Any:
    """Return the pipeline of TensorFlow's guide to performance: everything parallel, autotuned."""
    records = files.interleave(
        read, cycle_length=FILES, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False
    )
    images = records.shuffle(512).map(
        parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False
    )
    return images.batch(batch).prefetch(tf.data.AUTOTUNE)


def grain_map(source: Any, batch: int, threads: int = 16) -> Any:
    """Return grain's pipeline, which calls the same TensorFlow function from its threads."""
    grain = load_grain()
    compiled = tf.function(parse).get_concrete_function(tf.TensorSpec([], tf.string))

    def decode(record: bytes) -> Any:
        image, label = compiled(tf.constant(record))
        return image.numpy(), label.numpy()

    examples = grain.MapDataset.source(source).shuffle(seed=1).map(decode)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch)
    return examples.to_iter_dataset(options).batch(batch)


def pillow(record: bytes) -> Any:
    """Decode by Pillow, as grain's worker processes would need TensorFlow otherwise."""
    from PIL import Image

    features = tf.train.Example.FromString(record).features.feature
    image = Image.open(io.BytesIO(features["image"].bytes_list.value[0])).resize((224, 224), 2)
    return np.asarray(image, np.float32), np.int64(features["label"].int64_list.value[0])


def grain_contenders(folder: Path, batch: int) -> list[Contender]:
    """Return grain on ArrayRecord files: in threads, and in 2 processes."""
    grain = load_grain()
    source = grain.sources.ArrayRecordDataSource(sorted(map(str, folder.glob("*.array_record"))))
    in_threads = grain_map(source, batch)
    in_processes = (
        grain.MapDataset.source(source)
        .shuffle(seed=1)
        .map(pillow)
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=batch))
        .batch(batch)
        .mp_prefetch(grain.MultiprocessingOptions(num_workers=2))
    )
    return [
        Contender("grain on ArrayRecord, 16 threads", lambda: in_threads),
        Contender("grain on ArrayRecord, 2 processes, Pillow", lambda: in_processes),
    ]


def compare_records(folder: Path, number: int, batch: int, repeats: int) -> None:
    """Print the table for files on the local disk."""
    write(folder, number)
    pattern = f"{folder}/*.tfrecord"
    files = tf.data.Dataset.list_files(pattern)
    baseline = tf_data(files, tf.data.TFRecordDataset, batch)
    contenders = [
        *distrib_contenders(pattern, batch),
        Contender("tf.data, shuffle buffer of 512", lambda: baseline),
    ]
    if load_grain():
        contenders += grain_contenders(folder, batch)
    compare(f"{number} JPEG images of 500x375, local disk", contenders, repeats)
