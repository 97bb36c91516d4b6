"""Datasets of global batches that can be resumed at any step: start with `make_dataset.py`.

`order.py` computes which examples make up a batch; `sources.py` and `readers.py` fetch them,
`tfrecord.py` from files. Public: `TFRecordSource`; `cluster.dataset` is the way to all the rest.
"""

from __future__ import annotations

from distrib.data.tfrecord import TFRecordSource

__all__ = ["TFRecordSource"]
