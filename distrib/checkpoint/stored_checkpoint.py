"""Reads a committed checkpoint, and verifies every byte with its manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distrib.checkpoint import legacy_orbax, transfer
from distrib.checkpoint.layout import Array, Index, allocate, destinations, views
from distrib.checkpoint.manifest import DamagedCheckpointError, FileEntry, Manifest
from distrib.checkpoint.orbax_format import ARRAYS, INDEX, TRAINING, data_path, is_data
from distrib.storage.location import Location

_TRAINING = f"{TRAINING}/metadata"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The content of a checkpoint, in memory.

    Attributes:
        training: JSON-serializable.
        arrays: By group and name, in host memory; may be read-only.
    """

    training: dict[str, Any]
    arrays: dict[str, dict[str, Array]]


@dataclass(frozen=True)
class StoredCheckpoint:
    """A committed checkpoint.

    Attributes:
        location: Folder with the manifest.
        manifest: Of the checkpoint.
        cache: Local folder that may have copies of the files; `None` for none.
        late: Whether a superseded attempt committed it.
    """

    location: Location
    manifest: Manifest
    cache: Path | None = None
    late: bool = False

    @property
    def root(self) -> Location:
        """The folder of the Orbax checkpoint."""
        return self.location / self.manifest.root if self.manifest.root else self.location

    @cached_property
    def _entries(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.manifest.files}

    def read(self) -> LoadedCheckpoint:
        """Read the whole checkpoint into memory.

        Raises:
            DamagedCheckpointError: Names the first file that is missing, truncated or changed.
        """
        if self.manifest.format == legacy_orbax.FORMAT:
            return self._read_legacy()
        # Files without array data are small, and fastest to read together.
        others = [path for path in self._entries if path != _TRAINING and not is_data(path)]
        training = self._read_training(others)
        index = training.pop(INDEX)
        arrays = allocate(index)
        paths = {number: f"{ARRAYS}/{data_path(number)}" for number in _files(index)}
        into = {paths[number]: parts for number, parts in destinations(index, arrays).items()}
        contents = self._read(list(paths.values()), into)
        whole = {number: contents[path] for number, path in paths.items() if path in contents}
        for group, members in views(index, whole).items():
            arrays.setdefault(group, {}).update(members)
        return LoadedCheckpoint(training, arrays)

    def read_training(self) -> dict[str, Any]:
        """Read the JSON item, with the index of the arrays."""
        return self._read_training([])

    def verify(self) -> None:
        """Read every byte and verify it with the manifest.

        Raises:
            DamagedCheckpointError: Names the first file that is missing, truncated or changed.
        """
        self._read(list(self._entries), {path: [] for path in self._entries})

    def _read_training(self, others: list[str]) -> dict[str, Any]:
        """Read the JSON item, and verify other files at the same time."""
        return json.loads(self._read([_TRAINING, *others])[_TRAINING].tobytes())

    def _read(
        self, paths: list[str], into: dict[str, list[tuple[int, Array]]] | None = None
    ) -> dict[str, Array]:
        for path in paths:
            if path not in self._entries:
                raise DamagedCheckpointError(f"{self.location}: the manifest does not list {path}")
        entries = [self._entries[path] for path in paths]
        return transfer.read(entries, self.root, self.cache, into or {})

    def _read_legacy(self) -> LoadedCheckpoint:
        self.verify()
        folder = self.root.local
        assert folder is not None
        return LoadedCheckpoint(
            legacy_orbax.read_training(folder), legacy_orbax.read_arrays(folder)
        )


def _files(index: Index) -> list[int]:
    return sorted({file for entry in index for file, *_ in entry["blocks"]})
