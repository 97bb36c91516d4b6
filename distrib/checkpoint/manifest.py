"""The commit protocol: a folder is a checkpoint when it holds a manifest, and not before.

Writing many files cannot be atomic, replacing one can. So the data files are written first and
flushed to the disk, then `manifest.json`, which lists each of them with its size and CRC32C, is
put in place by one rename. A crash at any moment leaves a folder with a manifest that vouches for
every byte, or a folder without one, which is not a checkpoint and is removed by the next run.

The manifest stands inside the folder, so a checkpoint that was copied by other means still is one,
and it carries a checksum of itself, so a flipped bit in it is found like any other.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from distrib.errors import DistribError
from distrib.store import fsync, write_text

NAME = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 22


class DamagedCheckpointError(DistribError):
    """A committed checkpoint's bytes are not those that were committed."""


@dataclass(frozen=True)
class FileEntry:
    """One data file.

    Attributes:
        path: Relative to the checkpoint's folder, with `/`.
        size: In bytes.
        crc32c: Of the content.
    """

    path: str
    size: int
    crc32c: int


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint says of itself.

    Attributes:
        step: Batches trained since the run began.
        epoch: Epoch to go on with, counted from 0.
        batch: Batches of that epoch that are done.
        created: Seconds since 1970, UTC.
        files: All data files.
        format: Version of this layout.
    """

    step: int
    epoch: int
    batch: int
    created: float
    files: tuple[FileEntry, ...]
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all data files together."""
        return sum(entry.size for entry in self.files)


def commit(folder: Path, step: int, epoch: int, batch: int) -> Manifest:
    """Make the files in `folder` a checkpoint, durably.

    Args:
        folder: Holds the data files, complete.
        step: See `Manifest`.
        epoch: See `Manifest`.
        batch: See `Manifest`.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = []
    for path in paths:
        fsync(path)
        size, crc = _measure(path)
        entries.append(FileEntry(path.relative_to(folder).as_posix(), size, crc))
    for directory in sorted({folder, *(path.parent for path in paths)}):
        fsync(directory)
    manifest = Manifest(step, epoch, batch, time.time(), tuple(entries))
    body = asdict(manifest)
    write_text(folder / NAME, json.dumps({**body, "crc32c": _self_checksum(body)}, indent=1))
    fsync(folder.parent)
    return manifest


def is_committed(folder: Path) -> bool:
    """Tell whether `folder` holds a manifest, valid or not."""
    return (folder / NAME).is_file()


def read(folder: Path) -> Manifest:
    """Read the manifest of a committed checkpoint.

    Raises:
        DamagedCheckpointError: If it is not what was committed.
    """
    path = folder / NAME
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        checksum = body.pop("crc32c")
        files = tuple(FileEntry(**entry) for entry in body["files"])
        manifest = Manifest(**{**body, "files": files})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedCheckpointError(f"{path} is not a readable manifest: {error}") from error
    if checksum != _self_checksum(body):
        raise DamagedCheckpointError(f"{path} does not match its own checksum")
    if manifest.format > FORMAT:
        raise DistribError(
            f"{path} was written by a newer distrib (format {manifest.format}, this one reads up "
            f"to {FORMAT}); install that version to go on."
        )
    return manifest


def verify(folder: Path) -> Manifest:
    """Read every byte of a committed checkpoint and compare it with its manifest.

    Raises:
        DamagedCheckpointError: Names the first file that is missing, short or changed.
    """
    manifest = read(folder)
    for entry in manifest.files:
        path = folder / entry.path
        try:
            size, crc = _measure(path)
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{path} is missing") from error
        if size != entry.size:
            raise DamagedCheckpointError(f"{path} has {size} bytes instead of {entry.size}")
        if crc != entry.crc32c:
            raise DamagedCheckpointError(
                f"{path} has CRC32C {crc:08x} instead of {entry.crc32c:08x}"
            )
    return manifest


def _measure(path: Path) -> tuple[int, int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            crc = google_crc32c.extend(crc, chunk)
    return size, crc


def _self_checksum(body: dict[str, Any]) -> int:
    return int(google_crc32c.value(json.dumps(body, sort_keys=True).encode()))
