"""A committed checkpoint, read back: every byte of it is compared with its manifest on the way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distrib.checkpoint import orbax, transfer
from distrib.checkpoint.layout import Array, Index, allocate, destinations, views
from distrib.checkpoint.manifest import DamagedCheckpointError, FileEntry, Manifest
from distrib.checkpoint.orbax_format import ARRAYS, INDEX, TRAINING, data_path, is_data
from distrib.storage.location import Location

_TRAINING = f"{TRAINING}/metadata"


@dataclass(frozen=True)
class Loaded:
    """Everything that a checkpoint holds, in memory.

    Attributes:
        training: JSON-able.
        arrays: By group and name, in host memory; may be read-only.
    """

    training: dict[str, Any]
    arrays: dict[str, dict[str, Array]]


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that has a manifest.

    Attributes:
        place: The folder that holds the manifest.
        manifest: What it says.
        cache: Local folder that may hold copies of the files; `None` for none.
        late: Whether it was committed by an attempt that had been superseded.
    """

    place: Location
    manifest: Manifest
    cache: Path | None = None
    late: bool = False

    @property
    def root(self) -> Location:
        """The Orbax checkpoint."""
        return self.place / self.manifest.root if self.manifest.root else self.place

    @cached_property
    def _entries(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.manifest.files}

    def read(self) -> Loaded:
        """Read all of it into memory.

        Raises:
            DamagedCheckpointError: Names the first file that is missing, short or changed.
        """
        if self.manifest.format == 1:
            return self._read_by_orbax()
        # What is not data is small, and best asked for together.
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
        return Loaded(training, arrays)

    def read_training(self) -> dict[str, Any]:
        """Read the JSON item, with the index of the arrays."""
        return self._read_training([])

    def verify(self) -> None:
        """Read every byte and compare it with the manifest.

        Raises:
            DamagedCheckpointError: Names the first file that is missing, short or changed.
        """
        self._read(list(self._entries), {path: [] for path in self._entries})

    def _read_training(self, others: list[str]) -> dict[str, Any]:
        """Read the JSON item, and check some other files at the same time."""
        return json.loads(self._read([_TRAINING, *others])[_TRAINING].tobytes())

    def _read(
        self, paths: list[str], into: dict[str, list[tuple[int, Array]]] | None = None
    ) -> dict[str, Array]:
        for path in paths:
            if path not in self._entries:
                raise DamagedCheckpointError(f"{self.place}: the manifest does not list {path}")
        entries = [self._entries[path] for path in paths]
        return transfer.read(entries, self.root, self.cache, into or {})

    def _read_by_orbax(self) -> Loaded:
        """Read what an earlier version let Orbax write, to the local disk only."""
        self.verify()
        folder = self.root.local
        assert folder is not None
        return Loaded(orbax.read_training(folder), orbax.read_arrays(folder))


def _files(index: Index) -> list[int]:
    return sorted({file for entry in index for file, *_ in entry["blocks"]})
