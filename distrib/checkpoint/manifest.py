"""The manifest: what a committed checkpoint says of itself, down to every byte.

It stands beside the data, so a checkpoint that was copied by other means still is one. It lists
every file with its size and CRC32C, and carries a checksum of itself, so that a flipped bit in it
is found like any other. When it is written, and what that means, is told in `commit.py`.
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
    """A committed checkpoint's bytes are not those that were committed."""


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
    """What a committed checkpoint says of itself.

    Attributes:
        step: Batches trained since the run began.
        epoch: Epoch to go on with, counted from 0.
        batch: Batches of that epoch that are done.
        created: Seconds since 1970, UTC.
        files: All data files.
        attempt: Number of the attempt that wrote it.
        world_size: Processes of that attempt.
        fingerprint: Of the model, the optimizer and the data: equal for checkpoints that can be
            restored into the same run.
        metrics: What Keras reported last, by name.
        root: Where the files are, relative to the manifest; empty for beside it.
        format: Version of this layout. Format 1 has no fields after `files`.
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
        """Bytes of all data files together."""
        return sum(entry.size for entry in self.files)

    def encode(self) -> bytes:
        """Return the content of the manifest's file."""
        body = asdict(self)
        return json.dumps({**body, "crc32c": _self_checksum(body)}, indent=1).encode()


def decode(content: bytes, place: object) -> Manifest:
    """Return the manifest that a file holds.

    Args:
        content: Of the file.
        place: Its path or URL, for messages.

    Raises:
        DamagedCheckpointError: If it is not what was committed.
        DistribError: If a newer version of distrib wrote it.
    """
    try:
        body = json.loads(content)
        checksum = body.pop("crc32c")
        files = tuple(FileEntry(**entry) for entry in body["files"])
        version = int(body["format"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedCheckpointError(f"{place} is not a readable manifest: {error}") from error
    if checksum != _self_checksum(body):
        raise DamagedCheckpointError(f"{place} does not match its own checksum")
    if version > FORMAT:
        raise DistribError(
            f"{place} was written by a newer distrib (format {version}, this one reads up "
            f"to {FORMAT}); install that version to go on."
        )
    return Manifest(**{**body, "files": files})


def _self_checksum(body: Mapping[str, Any]) -> int:
    return int(google_crc32c.value(json.dumps(body, sort_keys=True).encode()))
