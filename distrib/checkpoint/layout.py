"""The position of every array in the data files of a checkpoint.

Arrays are packed one after the other, largest first, into files of at most `MAX_FILE_BYTES`. A
larger array is split into blocks of rows. So the number of files depends on the number of bytes and
not of variables, several files can be transferred at once, and a retry and the memory of a transfer
are bounded. The index of `Layout.index` is all that is needed to read the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and other type names with numpy)
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ArrayGroups = Mapping[str, Mapping[str, Array]]
Index = Sequence[Mapping[str, Any]]

# glibc keeps freed memory of up to 32 MiB. It returns larger byte strings to the system at once,
# which costs an upload a third more CPU.
MAX_FILE_BYTES = 16 << 20
ALIGNMENT = 64


@dataclass(frozen=True)
class Block:
    """Some or all rows of an array in a data file.

    Attributes:
        file: Number of the data file.
        offset: In bytes, from the start of the file.
        data: Bytes of the rows, shape (n,) uint8: a view of the array.
        length: Bytes in the file: `data`, padded with zeros if the last rows are missing.
    """

    file: int
    offset: int
    data: Array
    length: int


@dataclass(frozen=True)
class PlacedArray:
    """One array and its blocks.

    Attributes:
        group: First level of the name.
        name: Second level of the name.
        array: C-contiguous and little-endian.
        rows: Rows of a block, of which the last may have fewer; `None` if the array is not split.
        blocks: In order; none for an empty array.
    """

    group: str
    name: str
    array: Array
    rows: int | None
    blocks: list[Block]

    def describe(self) -> dict[str, Any]:
        """Return the array's entry of the index, JSON-serializable."""
        return {
            "group": self.group,
            "name": self.name,
            "dtype": self.array.dtype.name,
            "shape": list(self.array.shape),
            "blocks": [[block.file, block.offset, len(block.data)] for block in self.blocks],
        }


@dataclass(frozen=True)
class Layout:
    """All arrays of a checkpoint and their data files.

    Attributes:
        arrays: In the order of their positions.
        sizes: Of every data file, in bytes.
    """

    arrays: list[PlacedArray] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def index(self) -> list[dict[str, Any]]:
        """Return the index of all arrays for the functions below, JSON-serializable."""
        return [placed.describe() for placed in self.arrays]

    def blocks_by_file(self) -> list[list[Block]]:
        """Return the blocks of every data file, in the order of offsets."""
        files: list[list[Block]] = [[] for _ in self.sizes]
        for placed in self.arrays:
            for block in placed.blocks:
                files[block.file].append(block)
        return files


def plan(arrays: ArrayGroups) -> Layout:
    """Lay out arrays, by group and name. Only arrays that are not contiguous are copied."""
    layout = Layout()
    members = [(group, name, arrays[group][name]) for group in arrays for name in arrays[group]]
    for group, name, value in sorted(members, key=lambda member: -member[2].nbytes):
        array = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
        rows, parts = _split(array)
        blocks = [_place(layout, data, length) for data, length in parts]
        layout.arrays.append(PlacedArray(group, name, array, rows, blocks))
    return layout


def allocate(index: Index) -> dict[str, dict[str, Array]]:
    """Return uninitialized arrays for those that cannot be views of a file, by group and name.

    These are the arrays that are split, that share a file with a split one, or that are empty.
    """
    arrays: dict[str, dict[str, Array]] = {}
    for entry in _allocated(index):
        array = np.empty(entry["shape"], np.dtype(entry["dtype"]))
        arrays.setdefault(entry["group"], {})[entry["name"]] = array
    return arrays


def destinations(index: Index, arrays: ArrayGroups) -> dict[int, list[tuple[int, Array]]]:
    """Return the views of allocated arrays to read every data file into, with their offsets."""
    files: dict[int, list[tuple[int, Array]]] = {}
    for entry in _allocated(index):
        content = as_bytes(arrays[entry["group"]][entry["name"]])
        start = 0
        for file, offset, length in entry["blocks"]:
            files.setdefault(file, []).append((offset, content[start : start + length]))
            start += length
    return files


def views(index: Index, contents: Mapping[int, Array]) -> dict[str, dict[str, Array]]:
    """Return all other arrays as views of the content of data files, by group and name.

    Args:
        index: Of the checkpoint.
        contents: Of every data file that has no destinations, shape (n,) uint8.
    """
    arrays: dict[str, dict[str, Array]] = {}
    for entry in index:
        if len(entry["blocks"]) == 1 and entry["blocks"][0][0] in contents:
            file, offset, length = entry["blocks"][0]
            content = contents[file][offset : offset + length].view(np.dtype(entry["dtype"]))
            arrays.setdefault(entry["group"], {})[entry["name"]] = content.reshape(entry["shape"])
    return arrays


def _allocated(index: Index) -> list[Mapping[str, Any]]:
    split = {file for e in index if len(e["blocks"]) > 1 for file, *_ in e["blocks"]}
    return [
        entry
        for entry in index
        if not entry["blocks"] or any(file in split for file, *_ in entry["blocks"])
    ]


def as_bytes(array: Array) -> Array:
    """Return the bytes of a contiguous array as a view, shape (n,) uint8."""
    return array.reshape(-1).view(np.uint8)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _split(array: Array) -> tuple[int | None, Iterator[tuple[Array, int]]]:
    """Return the rows of a block, and the bytes and the length in the file of every block."""
    if array.size == 0:
        return None, iter(())
    content = as_bytes(array)
    row = prod(array.shape[1:]) * array.itemsize
    if array.nbytes <= MAX_FILE_BYTES or array.ndim == 0 or array.shape[0] == 1:
        return None, iter([(content, array.nbytes)])
    rows = max(MAX_FILE_BYTES // row, 1)
    length = rows * row
    starts = range(0, array.nbytes, length)
    return rows, ((content[start : start + length], length) for start in starts)


def _place(layout: Layout, data: Array, length: int) -> Block:
    sizes = layout.sizes
    offset = _aligned(sizes[-1]) if sizes else 0
    if not sizes or (offset and offset + length > MAX_FILE_BYTES):
        sizes.append(0)
        offset = 0
    sizes[-1] = offset + length
    return Block(len(sizes) - 1, offset, data, length)
