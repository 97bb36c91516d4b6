"""`TFRecordSource`: TFRecord files as a source with random access."""

from __future__ import annotations

import os
from typing import Any

from distrib.data.files.record_index import RecordFormat, Scanned
from distrib.data.files.record_source import Paths, RecordSource
from distrib.data.files.tfrecord_format import content_of, record_ends

_FORMAT = RecordFormat("TFRecord", lambda *read: Scanned(record_ends(*read)))


class TFRecordSource(RecordSource):
    """The records of TFRecord files, on the local disk or in an object store, in any order.

    A TFRecord file has no table of contents, so `tf.data.TFRecordDataset` can read it from its
    beginning only. This source makes an index of the records once, by reading their lengths, and
    keeps it. From then on a shuffle covers all records of all files, a rank reads only its own
    ones, and a resumed run reads nothing again. The checksum of each record is verified.

    Args:
        paths: Paths, fsspec URLs or patterns such as `"gs://bucket/train-*.tfrecord"`, one or a
            list. Records are numbered in the order of the sorted paths.
        index_dir: Folder for the index, a path or a URL. Defaults to `None`: beside the first
            file, as `.distrib-index-*`, or, if that cannot be written, in `~/.cache/distrib`.
        storage_options: Passed to fsspec's file system, for the data and for `index_dir` on a URL.
            Defaults to `None`.

    Raises:
        ConfigurationError: If there is no such file, or one cannot be read, is compressed, damaged
            or no TFRecord file. Reading a record that was damaged since raises `ValueError`.

    Example:

    ```python
    from distrib.data import TFRecordSource

    @tf.function
    def parse(record):
        features = tf.io.parse_single_example(record, {
            "image": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([], tf.int64),
        })
        return tf.io.decode_jpeg(features["image"]), features["label"]

    source = TFRecordSource("gs://bucket/train-*.tfrecord")
    train = cluster.dataset(source, batch_size=128, shuffle=True, map=parse)
    ```
    """

    def __init__(
        self,
        paths: Paths,
        *,
        index_dir: str | os.PathLike[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(paths, _FORMAT, index_dir, storage_options)

    def _parse(self, content: bytes, offset: int) -> bytes:
        return content_of(content, offset)
