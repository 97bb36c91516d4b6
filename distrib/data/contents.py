"""What arrays hold, in a few numbers by which other data of the same shape are told apart.

An array up to `_MAX_BYTES` is read in full, a larger one in blocks of rows spread over its length.
The checksum is exact. Preprocessing on several threads or on a GPU may round differently each time,
so for floats there are also the means of the blocks: rounding hardly changes them, while another
order or other examples do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import google_crc32c
import numpy as np
import tensorflow as tf

from distrib.data.arrays import Array
from distrib.data.files.source import FileSource

_BLOCKS = 16
_MAX_BYTES = 32 << 20
# Relative to the root mean square; dtypes of 2 bytes have 8 to 11 significant bits.
_ROUNDING = 1e-5
_ROUNDING_OF_HALVES = 1e-2


def contents_of(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Describe what arrays hold, as JSON values.

    Args:
        leaves: Pairs of a path and what is there: an array in memory or on disk, a tensor, a pandas
            or SciPy object, or a list, with one row for each example.
    """
    return {path: _describe(leaf) for path, leaf in leaves}


def _describe(leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, FileSource):
        return {"crc32c": f"{leaf.checksum():08x}"}
    checksum = 0
    means: list[float] = []
    squares: list[float] = []
    rounding = _ROUNDING
    for block in _blocks(leaf):
        checksum = google_crc32c.extend(checksum, block.tobytes())
        if block.dtype.kind == "f" or block.dtype.name == "bfloat16":
            numbers = np.nan_to_num(block.astype(np.float64), posinf=0.0, neginf=0.0)
            means.append(float(numbers.mean()) if numbers.size else 0.0)
            squares.append(float(np.square(numbers).mean()) if numbers.size else 0.0)
            rounding = _ROUNDING if block.dtype.itemsize > 2 else _ROUNDING_OF_HALVES
    described: dict[str, Any] = {"crc32c": f"{checksum:08x}"}
    if means:
        described |= {"means": means, "rounding": rounding * float(np.sqrt(np.mean(squares)))}
    return described


def _blocks(leaf: Any) -> Iterator[Array]:
    if isinstance(leaf, tf.RaggedTensor | tf.SparseTensor):
        for part in tf.nest.flatten(leaf, expand_composites=True):
            yield from _blocks(part)
        return
    if hasattr(leaf, "tocsr"):
        leaf = leaf.tocsr()  # Not all of SciPy's sparse arrays can be sliced.
    length = len(leaf) if isinstance(leaf, list) else int(leaf.shape[0])
    starts = [number * length // _BLOCKS for number in range(_BLOCKS)]
    row_bytes = max(1, _rows(leaf, 0, 1).nbytes)
    rows = max(1, _MAX_BYTES // _BLOCKS // row_bytes)
    for start, end in zip(starts, [*starts[1:], length], strict=True):
        if start < end:
            yield _rows(leaf, start, min(end, start + rows))


def _rows(leaf: Any, start: int, end: int) -> Array:
    rows = leaf.iloc[start:end] if hasattr(leaf, "iloc") else leaf[start:end]
    array: Array = np.asarray(rows.toarray() if hasattr(rows, "toarray") else rows)
    if array.dtype.kind not in "OSU":
        return array
    # Strings, or columns of several types: as Python writes them.
    return np.frombuffer(repr(array.tolist()).encode(errors="surrogatepass"), np.uint8)
