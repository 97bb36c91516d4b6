"""Datasets of global batches that can be resumed at any step: start with `make_dataset.py`.

`order.py` computes which examples make up a batch; `sources.py` and `readers.py` fetch them,
`files/` from files. `pipelines/` resumes what is no such dataset. Public: the sources of files;
`cluster.dataset` is the way to all the rest.
"""

from __future__ import annotations

from distrib.data.files.arrayrecord import ArrayRecordSource
from distrib.data.files.image_folder import ImageFolderSource
from distrib.data.files.parquet import ParquetSource
from distrib.data.files.tar import TarSource
from distrib.data.files.tfrecord import TFRecordSource
from distrib.data.files.tfrecord_gzip import GzipTFRecordSource

__all__ = [
    "ArrayRecordSource",
    "GzipTFRecordSource",
    "ImageFolderSource",
    "ParquetSource",
    "TFRecordSource",
    "TarSource",
]
