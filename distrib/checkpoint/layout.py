"""Where the bytes of every array lie in the data files of a checkpoint.

Arrays are laid one after the other, the largest first, into files of at most `PART` bytes, and an
array larger than that is cut into blocks of rows. So the number of files goes by the bytes and not
by the number of variables, several can travel at once, and what a retry repeats and a transfer
holds in memory is bounded. The index that `Layout.index` gives is all that is needed to read them
back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import ml_dtypes  # noqa: F401  (makes numpy know bfloat16 and its like by name)
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ArrayGroups = Mapping[str, Mapping[str, Array]]
Index = Sequence[Mapping[str, Any]]

# Larger byte strings are got from the system and given back one by one, which costs an upload a
# third more CPU (glibc keeps freed memory of up to 32 MiB).
PART = 16 << 20
ALIGNMENT = 64


@dataclass(frozen=True)
class Block:
    """Some rows of an array, or all of it, as they lie in a file.

    Attributes:
        file: Number of the data file.
        offset: In bytes, from its start.
        data: Bytes, shape (n,) uint8: a view of the array.
        length: Bytes in the file: those of `data`, and zeros where the last rows are missing.
    """

    file: int
    offset: int
    data: Array
    length: int


@dataclass(frozen=True)
class Placed:
    """One array and its blocks.

    Attributes:
        group: First level of its name.
        name: Second level.
        array: The array, C-contiguous and little-endian.
        rows: Rows in a block, the last of which may lack some; `None` where it is not cut.
        blocks: In order; none for an array without elements.
    """

    group: str
    name: str
    array: Array
    rows: int | None
    blocks: list[Block]

    def describe(self) -> dict[str, Any]:
        """Return its line of the index, JSON-able."""
        return {
            "group": self.group,
            "name": self.name,
            "dtype": self.array.dtype.name,
            "shape": list(self.array.shape),
            "blocks": [[block.file, block.offset, len(block.data)] for block in self.blocks],
        }


@dataclass(frozen=True)
class Layout:
    """All arrays of a checkpoint and the files that they fill.

    Attributes:
        arrays: In the order in which they lie.
        sizes: Bytes of every data file.
    """

    arrays: list[Placed] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def index(self) -> list[dict[str, Any]]:
        """Return where everything lies, JSON-able, for the functions below."""
        return [placed.describe() for placed in self.arrays]

    def blocks_by_file(self) -> list[list[Block]]:
        """Return the blocks of every data file, in the order of their offsets."""
        files: list[list[Block]] = [[] for _ in self.sizes]
        for placed in self.arrays:
            for block in placed.blocks:
                files[block.file].append(block)
        return files


def plan(arrays: ArrayGroups) -> Layout:
    """Lay out arrays, by group and name. No byte is copied unless an array is not contiguous."""
    layout = Layout()
    members = [(group, name, arrays[group][name]) for group in arrays for name in arrays[group]]
    for group, name, value in sorted(members, key=lambda member: -member[2].nbytes):
        array = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
        rows, pieces = _cut(array)
        blocks = [_place(layout, data, length) for data, length in pieces]
        layout.arrays.append(Placed(group, name, array, rows, blocks))
    return layout


def allocate(index: Index) -> dict[str, dict[str, Array]]:
    """Make, without content, the arrays that are more than a view of one file: those that are cut,
    those that share a file with such a one, and those without elements. By group and name."""
    arrays: dict[str, dict[str, Array]] = {}
    for entry in _allocated(index):
        array = np.empty(entry["shape"], np.dtype(entry["dtype"]))
        arrays.setdefault(entry["group"], {})[entry["name"]] = array
    return arrays


def destinations(index: Index, arrays: ArrayGroups) -> dict[int, list[tuple[int, Array]]]:
    """Return for data files the offsets and the bytes, views of allocated arrays, to read into."""
    files: dict[int, list[tuple[int, Array]]] = {}
    for entry in _allocated(index):
        content = as_bytes(arrays[entry["group"]][entry["name"]])
        start = 0
        for file, offset, length in entry["blocks"]:
            files.setdefault(file, []).append((offset, content[start : start + length]))
            start += length
    return files


def views(index: Index, contents: Mapping[int, Array]) -> dict[str, dict[str, Array]]:
    """Return all other arrays, as views of the content of data files, by group and name.

    Args:
        index: Of the checkpoint.
        contents: Of every file that has no destination, shape (n,) uint8.
    """
    arrays: dict[str, dict[str, Array]] = {}
    for entry in index:
        if len(entry["blocks"]) == 1 and entry["blocks"][0][0] in contents:
            file, offset, length = entry["blocks"][0]
            content = contents[file][offset : offset + length].view(np.dtype(entry["dtype"]))
            arrays.setdefault(entry["group"], {})[entry["name"]] = content.reshape(entry["shape"])
    return arrays


def _allocated(index: Index) -> list[Mapping[str, Any]]:
    cut = {file for e in index if len(e["blocks"]) > 1 for file, *_ in e["blocks"]}
    return [
        entry
        for entry in index
        if not entry["blocks"] or any(file in cut for file, *_ in entry["blocks"])
    ]


def as_bytes(array: Array) -> Array:
    """Return the bytes of a contiguous array as a view, shape (n,) uint8."""
    return array.reshape(-1).view(np.uint8)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _cut(array: Array) -> tuple[int | None, Iterator[tuple[Array, int]]]:
    """Return the rows of a block, and the bytes of each with its length in the file."""
    if array.size == 0:
        return None, iter(())
    content = as_bytes(array)
    row = prod(array.shape[1:]) * array.itemsize
    if array.nbytes <= PART or array.ndim == 0 or array.shape[0] == 1:
        return None, iter([(content, array.nbytes)])
    rows = max(PART // row, 1)
    length = rows * row
    starts = range(0, array.nbytes, length)
    return rows, ((content[start : start + length], length) for start in starts)


def _place(layout: Layout, data: Array, length: int) -> Block:
    sizes = layout.sizes
    offset = _aligned(sizes[-1]) if sizes else 0
    if not sizes or (offset and offset + length > PART):
        sizes.append(0)
        offset = 0
    sizes[-1] = offset + length
    return Block(len(sizes) - 1, offset, data, length)
