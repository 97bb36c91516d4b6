"""OCDBT, the key-value format that Orbax keeps arrays in, written without copying the values.

A database is one small manifest, one node that lists the keys, and data files that may lie anywhere
below it. Values stay where they are: the node says which bytes of which data file they are. So a
thousand variables take a handful of objects on a store, whose bytes go there straight from memory.

Only what a checkpoint needs is written: one version, one leaf node, no compression. The format is
described in the documentation of TensorStore's `ocdbt` driver; the tests read what is written here
with TensorStore and with Orbax.
"""

from __future__ import annotations

import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import google_crc32c

MANIFEST = "manifest.ocdbt"

_MANIFEST_MAGIC = 0x0CDB3A2A
_NODE_MAGIC = 0x0CDB20DE
# What readers are told of limits; a leaf holds all keys, however many there are.
_MAX_INLINE_BYTES = 1024
_MAX_NODE_BYTES = 1 << 30
_VERSION_TREE_ARITY_LOG2 = 4
_SINGLE_MANIFEST = 0
_UNCOMPRESSED = 0


@dataclass(frozen=True)
class Reference:
    """Where a value lies.

    Attributes:
        file: Index into the list of data files.
        offset: In bytes.
        length: In bytes.
    """

    file: int
    offset: int
    length: int


def encode_node(values: Sequence[tuple[str, bytes | Reference]], files: Sequence[str]) -> bytes:
    """Encode the leaf node that holds all keys.

    Args:
        values: Key and value, sorted by the key's UTF-8 bytes: at least one, none twice.
        files: Paths of the data files relative to the database.
    """
    keys = [key.encode() for key, _ in values]
    shared = [0, *(_common_prefix(a, b) for a, b in pairwise(keys))]
    suffixes = [key[start:] for key, start in zip(keys, shared, strict=True)]
    inline = [value for _, value in values if isinstance(value, bytes)]
    references = [value for _, value in values if isinstance(value, Reference)]
    lengths = [value.length if isinstance(value, Reference) else len(value) for _, value in values]
    body = b"".join(
        [
            b"\0",  # The height of a leaf.
            _file_table(files),
            _varints(len(values)),
            _varints(*shared[1:]),
            _varints(*map(len, suffixes)),
            *suffixes,
            _varints(*lengths),
            _varints(*(isinstance(value, Reference) for _, value in values)),
            _varints(*(reference.file for reference in references)),
            _varints(*(reference.offset for reference in references)),
            *inline,
        ]
    )
    return _framed(_NODE_MAGIC, body)


def encode_manifest(node: bytes, file: str, keys: int, referenced_bytes: int) -> bytes:
    """Encode the manifest of a database with one node.

    Args:
        node: From `encode_node`.
        file: Path of the file that holds the node and nothing else, relative to the database.
        keys: Number of keys in the node.
        referenced_bytes: Bytes of all values that the node refers to.
    """
    body = b"".join(
        [
            uuid.uuid4().bytes,
            _varints(_SINGLE_MANIFEST, _MAX_INLINE_BYTES, _MAX_NODE_BYTES),
            bytes([_VERSION_TREE_ARITY_LOG2]),
            _varints(_UNCOMPRESSED),
            _file_table([file]),
            _varints(1),  # Versions, of which this is
            _varints(1),  # the first;
            b"\0",  # its root is a leaf,
            _varints(0, 0, len(node)),  # all of the first data file.
            _varints(keys, len(node), referenced_bytes),
            struct.pack("<Q", time.time_ns()),
            _varints(0),  # Nodes with older versions.
        ]
    )
    return _framed(_MANIFEST_MAGIC, body)


def _framed(magic: int, body: bytes) -> bytes:
    """Put the common header before, and the checksum behind."""
    header = _varints(0, _UNCOMPRESSED)  # Of format version 0.
    length = 4 + 8 + len(header) + len(body) + 4
    content = struct.pack(">I", magic) + struct.pack("<Q", length) + header + body
    return content + struct.pack("<I", google_crc32c.value(content))


def _file_table(files: Sequence[str]) -> bytes:
    paths = [path.encode() for path in files]
    nothing_shared = [0] * len(paths)
    return b"".join(
        [
            _varints(len(paths)),
            _varints(*nothing_shared[1:]),
            _varints(*map(len, paths)),
            _varints(*nothing_shared),
            *paths,
        ]
    )


def _varints(*numbers: int) -> bytes:
    encoded = bytearray()
    for number in numbers:
        rest = int(number)
        while rest >= 0x80:
            encoded.append(rest & 0x7F | 0x80)
            rest >>= 7
        encoded.append(rest)
    return bytes(encoded)


def _common_prefix(one: bytes, other: bytes) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
