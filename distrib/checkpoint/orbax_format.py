"""Encoder for checkpoints in Orbax's format: the content of every file, without copying arrays.

A checkpoint is an Orbax composite of two items: `arrays`, a PyTree in an OCDBT database of
uncompressed zarr arrays, and `training`, JSON. Empty arrays, which Orbax rejects, are only in the
index of `training`.

Why not Orbax itself: it writes only to local disk, without the CRC32C of its files, and through
TensorStore's thread pools, which copy the arrays and compete with training for cores. In
`benchmarks/orbax_writer.py` (477 MB, 2 cores, local disk, all files flushed and checksummed) every
configuration of Orbax takes at least 2.1 times as long, 10 times the CPU and 510 MB of memory; this
encoder and `transfer.py` take 35 MB.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distrib.checkpoint import ocdbt
from distrib.checkpoint.layout import Array, ArrayGroups, Block, Layout, PlacedArray, plan

ARRAYS = "arrays"
TRAINING = "training"
INDEX = "index"

_HANDLERS = {
    ARRAYS: "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler",
    TRAINING: "orbax.checkpoint._src.handlers.json_checkpoint_handler.JsonCheckpointHandler",
}
_NODE = "d/tree"
_DICT_KEY = 2  # Orbax's number for a dict key.


@dataclass(frozen=True)
class DataFile:
    """One file of a checkpoint, to be written.

    Attributes:
        path: Relative to the checkpoint.
        size: In bytes.
        parts: Pairs of offset and bytes, shape (n,) uint8, in the order of offsets. Gaps are zeros.
    """

    path: str
    size: int
    parts: list[tuple[int, Array]]

    @classmethod
    def of(cls, path: str, content: bytes) -> DataFile:
        """Return a file with the given content."""
        return cls(path, len(content), [(0, np.frombuffer(content, np.uint8))])


def files(arrays: ArrayGroups, training: Mapping[str, Any]) -> list[DataFile]:
    """Return all files of a checkpoint, small ones first: they need latency, not bandwidth.

    Args:
        arrays: By group and name. The bytes are read only when the files are written.
        training: JSON-serializable.
    """
    layout = plan(arrays)
    paths = [data_path(number) for number in range(len(layout.sizes))]
    large = [
        DataFile(f"{ARRAYS}/{path}", size, [(block.offset, block.data) for block in blocks])
        for path, size, blocks in zip(paths, layout.sizes, layout.blocks_by_file(), strict=True)
    ]
    values = sorted(_values(layout), key=lambda value: value[0].encode())
    node = ocdbt.encode_node(values, paths)
    small = {
        f"{ARRAYS}/{_NODE}": node,
        f"{ARRAYS}/{ocdbt.MANIFEST}": ocdbt.encode_manifest(
            node, _NODE, len(values), sum(block.length for block in _blocks(layout))
        ),
        f"{ARRAYS}/_METADATA": _json(_tree_metadata(layout)),
        f"{TRAINING}/metadata": _json({**training, INDEX: layout.index()}),
        "_CHECKPOINT_METADATA": _json(_checkpoint_metadata()),
    }
    return [DataFile.of(path, content) for path, content in small.items()] + large


def data_path(number: int) -> str:
    """Return the path of a data file relative to the item `arrays`."""
    return f"d/{number:06d}"


def is_data(path: str) -> bool:
    """Return whether a path, relative to the checkpoint, is the path of a data file."""
    return re.fullmatch(rf"{ARRAYS}/d/\d+", path) is not None


def _blocks(layout: Layout) -> list[Block]:
    return [block for placed in layout.arrays for block in placed.blocks]


def _values(layout: Layout) -> list[tuple[str, bytes | ocdbt.Reference]]:
    """Return the keys of all zarr arrays with their values: metadata and chunks."""
    values: list[tuple[str, bytes | ocdbt.Reference]] = []
    for placed in layout.arrays:
        if not placed.blocks:
            continue
        name = f"{placed.group}.{placed.name}"
        values.append((f"{name}/.zarray", _json(_zarray(placed), separators=(",", ":"))))
        for number, block in enumerate(placed.blocks):
            chunk = ".".join([str(number), *["0"] * (placed.array.ndim - 1)])
            reference = ocdbt.Reference(block.file, block.offset, block.length)
            values.append((f"{name}/{chunk}", reference))
    return values


def _zarray(placed: PlacedArray) -> dict[str, Any]:
    array = placed.array
    is_extension = array.dtype.kind == "V"  # bfloat16 and other types of ml_dtypes.
    chunks = list(array.shape)
    if placed.rows is not None:
        chunks[0] = placed.rows
    return {
        "chunks": chunks,
        "compressor": None,
        "dimension_separator": ".",
        "dtype": array.dtype.name if is_extension else array.dtype.str,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    }


def _tree_metadata(layout: Layout) -> dict[str, Any]:
    return {
        "tree_metadata": {
            str((placed.group, placed.name)): {
                "key_metadata": [
                    {"key": key, "key_type": _DICT_KEY} for key in (placed.group, placed.name)
                ],
                "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
            }
            for placed in layout.arrays
            if placed.blocks
        },
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


def _checkpoint_metadata() -> dict[str, Any]:
    now = time.time_ns()
    return {
        "item_handlers": _HANDLERS,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {},
    }


def _json(value: Any, **options: Any) -> bytes:
    return json.dumps(value, **options).encode()
