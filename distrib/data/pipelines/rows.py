"""A rank's rows of a batch that all ranks have."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from distrib.data.order import Shard


class Rows(Shard):
    """The rows of a rank.

    A rank without any row gets the first one. It counts nothing in the gradients (see `share`), but
    metrics count it once more.
    """

    def of(self, batch: Any) -> Any:
        """Return this rank's rows of a batch, of any structure."""
        begin, end = self.bounds(_rows_in(batch))
        if begin == end:
            begin, end = 0, 1
        return tf.nest.map_structure(lambda each: _slice(each, begin, end - begin), batch)

    def share(self, batch: Any) -> float:
        """Return the number of this rank's rows, relative to an equal share."""
        number = _rows_in(batch)
        return self.count(number) * self.size / number if number else 1.0


@tf.autograph.experimental.do_not_convert
def spec_of_rows(batches: Any) -> Any:
    """Return the structure of any rows of the batches of a `tf.data.Dataset`."""
    is_tuple = isinstance(batches.element_spec, tuple)

    def first(count: Any, *batch: Any) -> Any:
        rows = batch[0] if len(batch) == 1 and not is_tuple else batch
        return tf.nest.map_structure(lambda each: _slice(each, 0, count), rows)

    counts = tf.data.Dataset.counter(dtype=tf.int32)
    return (
        tf.data.Dataset.zip((counts, batches))
        .map(lambda count, batch: first(count, *(batch if is_tuple else (batch,))))
        .element_spec
    )


def _rows_in(batch: Any) -> int:
    first = tf.nest.flatten(batch)[0]
    if isinstance(first, tf.SparseTensor):
        return int(first.dense_shape[0])
    return int(first.nrows()) if isinstance(first, tf.RaggedTensor) else int(first.shape[0])


def _slice(rows: Any, begin: int, count: Any) -> Any:
    if not isinstance(rows, tf.SparseTensor):
        return rows[begin : begin + count]
    rank = rows.shape.rank
    size = tf.concat([[tf.cast(count, tf.int64)], rows.dense_shape[1:]], 0)
    return tf.sparse.slice(rows, [begin] + [0] * (rank - 1), size)
