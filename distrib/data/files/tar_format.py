"""WebDataset's tar files: where the examples of a file are, and what they hold.

An example is the members of one basename, next to each other: `0001.jpg` and `0001.cls`. What comes
after the first dot of a member's name is its extension. Folders, and members without an extension
or whose name begins with a dot, do not count (https://github.com/webdataset/webdataset).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator

import numpy as np

from distrib.data.files.range_file import RangeFile
from distrib.data.files.record_index import RecordError, Scanned

KEY = "__key__"
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_END = bytes(tarfile.BLOCKSIZE)
_TAIL_BYTES = 1 << 16
# Distinct sets of extensions that are kept of a file, each with an example that has it.
_MAX_KINDS = 16


def scan(read: Callable[[int, int], bytes], size: int, window_size: int) -> Scanned:
    """Find the examples of a file.

    Args:
        read: Returns the bytes from an offset to another.
        size: Of the file, in bytes.
        window_size: Number of bytes to read at once.

    Returns:
        Their ends, and as notes pairs of a list of extensions and the key of the first example
        that has just these.

    Raises:
        RecordError: If the file is compressed or no tar file, damaged or truncated, or members of
            an example are not next to each other.
    """
    ends: list[int] = []
    kinds: dict[tuple[str, ...], str] = {}
    keys: set[str] = set()
    key, extensions = "", list[str]()

    def finish() -> None:
        kind = tuple(sorted(extensions))
        if len(kinds) < _MAX_KINDS:
            kinds.setdefault(kind, key)

    for next_key, extension, member in _members(RangeFile(read, size, window_size), size):
        if next_key != key:
            if next_key in keys:
                raise RecordError(
                    f"the members of {next_key!r} are not next to each other; write it with "
                    "`tar --sort=name`"
                )
            if key:
                finish()
            keys.add(next_key)
            key, extensions = next_key, []
            ends.append(0)
        elif extension in extensions:
            raise RecordError(f"it has two members {next_key}.{extension}")
        extensions.append(extension)
        ends[-1] = _end_of(member)
    if key:
        finish()
    return Scanned(np.array(ends, np.int64), [[list(kind), kinds[kind]] for kind in kinds])


def example_of(content: bytes, offset: int) -> dict[str, bytes | str]:
    """Return an example: its members' contents by extension, and its key as `"__key__"`.

    Args:
        content: The bytes of its members, with their headers.
        offset: Of these bytes in the file, for error messages.

    Raises:
        RecordError: If the members are damaged.
    """
    example: dict[str, bytes | str] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for key, extension, member in _named(archive):
                file = archive.extractfile(member)
                assert file is not None
                example[extension] = file.read()
                example[KEY] = key
            complete = archive.offset >= len(content)
    except tarfile.TarError as error:
        raise RecordError(f"the example at byte {offset} is damaged ({error})") from error
    if not example or not complete:
        raise RecordError(f"the example at byte {offset} is damaged")
    return example


def _members(file: RangeFile, size: int) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    if file.read(2) == b"\x1f\x8b":
        raise RecordError("it is compressed; decompress it, so that it can be read in any order")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for found in _named(archive):
                if _end_of(found[2]) > size:
                    raise RecordError("it is truncated")
                yield found
            offset = archive.offset
    except tarfile.TarError as error:
        raise RecordError(f"it is no sound tar file ({error})") from error
    # `tarfile` takes a damaged header for the end.
    file.seek(offset)
    tail = file.read(_TAIL_BYTES)
    if len(tail) < len(_END):
        raise RecordError("it is truncated: the mark of the archive's end is missing")
    if not tail.startswith(_END):
        raise RecordError(f"it is damaged at byte {offset}")
    if tail.strip(b"\0"):
        raise RecordError(
            f"something follows the archive's end at byte {offset}; archives cannot be "
            "concatenated, pass them as several files"
        )


def _named(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, extension and member of all that counts."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # It would keep them all.
        if member.isdir():
            continue
        parts = _NAME.fullmatch(member.name)
        if parts is None:
            continue
        if not member.isreg():
            raise RecordError(f"its member {member.name} is no regular file")
        yield parts[1], parts[2].lower(), member


def _end_of(member: tarfile.TarInfo) -> int:
    return member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
