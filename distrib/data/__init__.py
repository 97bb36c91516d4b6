"""Datasets of global batches that can be resumed at any step: start with `make_dataset.py`.

`order.py` computes which examples make up a batch; `sources.py` and `readers.py` fetch them,
`file_source.py` and what builds on it from files. Public: the sources of examples in files;
`cluster.dataset` is the way to all the rest.
"""

from __future__ import annotations

from distrib.data.arrayrecord import ArrayRecordSource
from distrib.data.image_folder import ImageFolderSource
from distrib.data.parquet import ParquetSource
from distrib.data.tar import TarSource
from distrib.data.tfrecord import TFRecordSource
from distrib.data.tfrecord_gzip import GzipTFRecordSource

__all__ = [
    "ArrayRecordSource",
    "GzipTFRecordSource",
    "ImageFolderSource",
    "ParquetSource",
    "TFRecordSource",
    "TarSource",
]
