"""`TFRecordSource`: TFRecord files as a source with random access."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from distrib.data.record_index import open_index
from distrib.data.tfrecord_format import RecordError, content_of
from distrib.errors import ConfigurationError
from distrib.storage.find_files import find_files
from distrib.storage.locate import locate


class TFRecordSource:
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
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        index_dir: str | os.PathLike[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        files = find_files(paths, "paths", storage_options)
        folder = None
        if index_dir is not None:
            remote = "://" in os.fspath(index_dir)
            folder = locate(index_dir, "index_dir", storage_options if remote else None)
        self._files = [file.location for file in files]
        self._index = open_index(files, folder)
        if len(self) == 0:
            raise ConfigurationError(f"`paths={paths!r}`: the files have no records.")

    def __len__(self) -> int:
        """Return the number of records in all files."""
        return int(self._index.first[-1])

    def __getitem__(self, index: int) -> bytes:
        """Return the content of a record, usually a serialized `tf.train.Example`.

        Raises:
            IndexError: If there is no such record.
            ValueError: If the record is damaged; names the file and the offset.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no record {index}; there are {len(self)}")
        file, start, end = self._index.locate(index)
        try:
            return content_of(self._files[file].read_range(start, end), start)
        except RecordError as error:
            raise ValueError(
                f"{self._files[file]}: {error}. It is damaged, or has changed since it was indexed."
            ) from error
