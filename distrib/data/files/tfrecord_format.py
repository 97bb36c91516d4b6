"""The TFRecord file format: where the records of a file are, and what they hold.

A record is its length (uint64, little endian), the length's checksum, the content and the content's
checksum. Checksums are CRC32C, rotated and shifted so that records inside of records are told apart
(`tensorflow/core/lib/io/record_writer.h`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import google_crc32c
import numpy as np
import numpy.typing as npt

from distrib.data.files.record_index import RecordError

HEADER_SIZE, FOOTER_SIZE = 12, 4
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_GZIP, _ZLIB = b"\x1f\x8b", b"\x78"


def record_ends(
    read: Callable[[int, int], bytes], size: int, window_size: int
) -> npt.NDArray[np.int64]:
    """Return the offset behind each record of a file; the first record begins at 0.

    Reads windows of the file, and none of what lies between two windows. Checks the checksum of
    each length, not those of the contents.

    Args:
        read: Returns the bytes from an offset to another.
        size: Of the file, in bytes.
        window_size: Number of bytes to read at once.

    Returns:
        int64 array of shape `[records]`.

    Raises:
        RecordError: If the file is compressed, is no TFRecord file, or is truncated.
    """
    ends: list[int] = []
    position, start, window = 0, 0, b""
    while position < size:
        if position + HEADER_SIZE > start + len(window):
            start, window = position, read(position, min(size, position + window_size))
        header = window[position - start : position - start + HEADER_SIZE]
        length = content_length(header, position)
        position += HEADER_SIZE + length + FOOTER_SIZE
        ends.append(position)
    if position > size:
        raise RecordError(f"it is truncated: its last record needs {position - size} more bytes")
    return np.array(ends, np.int64)


def content_of(record: bytes, offset: int) -> bytes:
    """Return the content of a record, after checking its length and checksums.

    Args:
        record: The whole record.
        offset: Of the record in its file, for error messages.

    Raises:
        RecordError: If it is damaged.
    """
    length = content_length(record[:HEADER_SIZE], offset)
    if len(record) != HEADER_SIZE + length + FOOTER_SIZE:
        raise RecordError(f"the record at byte {offset} has another length")
    content = record[HEADER_SIZE:-FOOTER_SIZE]
    if _FOOTER.unpack(record[-FOOTER_SIZE:])[0] != _masked_crc(content):
        raise RecordError(f"the record at byte {offset} does not match its checksum")
    return content


def content_length(header: bytes, offset: int) -> int:
    """Return the length of a record's content, after checking its checksum.

    Args:
        header: The first `HEADER_SIZE` bytes of the record.
        offset: Of the record in its file, for error messages.

    Raises:
        RecordError: If it is damaged.
    """
    if offset == 0 and header[:2] == _GZIP:
        raise RecordError(
            "it is compressed (GZIP), so its records cannot be read in any order; decompress it, "
            "or read it in its order by `distrib.data.GzipTFRecordSource`"
        )
    if len(header) < HEADER_SIZE:
        raise RecordError(f"it is truncated at byte {offset}")
    length, crc = _HEADER.unpack(header)
    if crc != _masked_crc(header[:8]):
        if offset == 0 and header[:1] == _ZLIB:
            raise RecordError("it is compressed (ZLIB) or no TFRecord file; decompress it")
        problem = "is no TFRecord file" if offset == 0 else f"is damaged at byte {offset}"
        raise RecordError(f"it {problem}: the checksum of a record's length is wrong")
    return int(length)


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
