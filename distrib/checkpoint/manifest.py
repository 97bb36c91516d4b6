"""The manifest of a committed checkpoint: its position in training and all of its files.

The manifest is stored with the data, so a checkpoint stays valid when other tools copy it. It lists
every file with its size and CRC32C, and has a checksum of itself, so that a flipped bit in the
manifest is found too. `commit.py` says when it is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import google_crc32c

from distrib.errors import DistribError

NAME = "manifest.json"
FORMAT = 2


class DamagedCheckpointError(DistribError):
    """The bytes of a checkpoint have changed since its commit."""


@dataclass(frozen=True)
class FileEntry:
    """One data file.

    Attributes:
        path: Relative to the checkpoint's root, with `/`.
        size: In bytes.
        crc32c: Of the content.
    """

    path: str
    size: int
    crc32c: int


@dataclass(frozen=True)
class Manifest:
    """The description of a committed checkpoint.

    Attributes:
        step: Batches trained since the start of the run.
        epoch: Epoch to resume, counted from 0.
        batch: Number of finished batches of that epoch.
        created: Seconds since 1970, UTC.
        files: All data files.
        attempt: Number of the attempt that wrote it.
        world_size: Number of processes of that attempt.
        fingerprint: Of the model, the optimizer and the data; equal for checkpoints that fit the
            same run.
        metrics: The last logs of Keras, by name.
        root: Folder of the files, relative to the manifest; empty for the manifest's folder.
        format: Version of the checkpoint format. Format 1 has no fields between `files` and
            `format`.
    """

    step: int
    epoch: int
    batch: int
    created: float
    files: tuple[FileEntry, ...]
    attempt: int = 0
    world_size: int = 1
    fingerprint: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    root: str = ""
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Total size of all data files, in bytes."""
        return sum(entry.size for entry in self.files)

    def encode(self) -> bytes:
        """Return the content of the manifest's file."""
        body = asdict(self)
        return json.dumps({**body, "crc32c": _self_checksum(body)}, indent=1).encode()


def decode(content: bytes, location: object) -> Manifest:
    """Decode the content of a manifest's file.

    Args:
        content: Of the file.
        location: Path or URL of the file, for error messages.

    Raises:
        DamagedCheckpointError: If the content has changed since the commit.
        DistribError: If a newer version of distrib wrote it.
    """
    try:
        body = json.loads(content)
        checksum = body.pop("crc32c")
        files = tuple(FileEntry(**entry) for entry in body["files"])
        version = int(body["format"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedCheckpointError(f"{location} is not a readable manifest: {error}") from error
    if checksum != _self_checksum(body):
        raise DamagedCheckpointError(f"{location} does not match its own checksum")
    if version > FORMAT:
        raise DistribError(
            f"{location} was written by a newer distrib (format {version}, this one reads up "
            f"to {FORMAT}); install that version to resume."
        )
    return Manifest(**{**body, "files": files})


def _self_checksum(body: Mapping[str, Any]) -> int:
    return int(google_crc32c.value(json.dumps(body, sort_keys=True).encode()))
