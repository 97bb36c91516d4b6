"""Where each record of many files is, kept in a file so that it is found out only once.

The index holds the size and version of each file that it describes, and is made anew if one of them
has changed. It is kept beside the data, or, where that cannot be written, in the user's cache
folder. Only the chief writes there: what another rank has made is kept in its machine's cache under
a name of its own, where a chief that comes later finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from distrib.environment import is_chief
from distrib.errors import ConfigurationError
from distrib.log import log
from distrib.storage.file_lock import acquire_lock
from distrib.storage.find_files import FoundFile, unreadable
from distrib.storage.locate import locate
from distrib.storage.location import Location, describe_error

_DTYPE = "<i8"
# Bytes to read at once. A request to a store costs as much time as a few MiB.
_LOCAL_WINDOW, _REMOTE_WINDOW = 1 << 14, 1 << 22
_PARALLEL_FILES = 16


class RecordError(ValueError):
    """A file does not hold the records that it should; the message says where."""


class Scanned(NamedTuple):
    """What a file was found to hold.

    Attributes:
        ends: Offset behind each of its records; the first one begins at 0. int64, shape
            `[records]`.
        notes: What else the format wants to be kept of it, as JSON values.
    """

    ends: npt.NDArray[np.int64]
    notes: Any = None


class RecordFormat(NamedTuple):
    """A format of files that hold records one after the other.

    Attributes:
        name: For messages, and to keep the indexes of formats apart.
        scan: Finds the records of a file. Its arguments are a function that returns the bytes from
            an offset to another, the size of the file, and a number of bytes that suits one call.
            Raises `RecordError`.
    """

    name: str
    scan: Callable[[Callable[[int, int], bytes], int, int], Scanned]


@dataclass(frozen=True)
class RecordIndex:
    """Where each record is.

    Attributes:
        files: What each file holds.
    """

    files: list[Scanned]

    @property
    def counts(self) -> list[int]:
        """Number of records of each file."""
        return [len(file.ends) for file in self.files]

    def bounds(self, file: int, record: int) -> tuple[int, int]:
        """Return the offset of a record in its file, and the offset behind it."""
        ends = self.files[file].ends
        return int(ends[record - 1]) if record else 0, int(ends[record])


def open_index(
    files: Sequence[FoundFile], index_dir: Location | None, format: RecordFormat
) -> RecordIndex:
    """Return the index of the files: the one that was kept, or a new one, which is kept.

    Processes of one machine that need the same index wait for the one that makes it.

    Args:
        files: In the order of their records.
        index_dir: Folder to keep the index in; `None` is beside the data or in the cache folder.
        format: Of the files.

    Raises:
        ConfigurationError: If a file cannot be read, or is no sound file of this format.
    """
    described = [[file.location.url, file.size, file.version] for file in files]
    described.append([format.name])
    urls = "\n".join(file.location.url for file in files)
    name = f".distrib-index-{hashlib.sha256(urls.encode()).hexdigest()[:16]}"
    cache = _cache_folder()
    places = [files[0].location.parent, *cache] if index_dir is None else [index_dir]
    kept = [place / name for place in places]
    of_ranks = [folder / f"{name}.rank" for folder in cache]
    with ExitStack() as stack:
        for folder in cache:
            lock = stack.enter_context(open(f"{folder / name}.lock", "wb"))
            acquire_lock(lock.fileno(), wait=True)
        index = _load(kept, described)
        if index is None:
            index = _load(of_ranks, described) or _make(files, format)
            _keep(index, described, kept if is_chief() else of_ranks)
    return index


def _cache_folder() -> list[Location]:
    """Return the user's cache folder, or none if it cannot be written, as in some containers."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = base / "distrib" / "indexes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return []
    return [locate(folder, "index_dir")] if os.access(folder, os.W_OK) else []


def _make(files: Sequence[FoundFile], format: RecordFormat) -> RecordIndex:
    log.info(f"indexing {len(files)} {format.name} files in {files[0].location.parent}.")
    with ThreadPoolExecutor(_PARALLEL_FILES, "distrib-index") as pool:
        return RecordIndex(list(pool.map(lambda file: _scan(file, format), files)))


def _scan(file: FoundFile, format: RecordFormat) -> Scanned:
    location = file.location
    window = _REMOTE_WINDOW if location.local is None else _LOCAL_WINDOW
    try:
        scanned = format.scan(location.read_range, file.size, window)
        file.check_unchanged()
    except RecordError as error:
        raise ConfigurationError(f"{location} cannot be used: {error}.") from error
    except OSError as error:
        raise unreadable(str(location), error, location) from error
    return scanned


def _load(locations: Sequence[Location], described: list[list[Any]]) -> RecordIndex | None:
    for location in locations:
        try:
            content = location.read_bytes()
        except OSError:
            continue  # There is none, or none for this user; the index is made anew.
        header, _, ends = content.partition(b"\n")
        try:
            stored = json.loads(header)
        except ValueError:
            continue
        if stored.get("files") == described and stored.get("crc32c") == google_crc32c.value(ends):
            splits = np.cumsum(stored["records"])[:-1]
            parts = np.split(np.frombuffer(ends, _DTYPE), splits)
            notes = stored["notes"]
            return RecordIndex([Scanned(*each) for each in zip(parts, notes, strict=True)])
    return None


def _keep(index: RecordIndex, described: list[list[Any]], locations: Sequence[Location]) -> None:
    ends = np.concatenate([file.ends for file in index.files]).astype(_DTYPE).tobytes()
    stored = {
        "files": described,
        "records": index.counts,
        "notes": [file.notes for file in index.files],
        "crc32c": google_crc32c.value(ends),
    }
    content = json.dumps(stored).encode() + b"\n" + ends
    reasons = []
    for location in locations:
        try:
            location.write_bytes(content)
        except OSError as error:
            reasons.append(f"{location.parent}: {describe_error(error, location.parent)}")
        else:
            return
    if not reasons:
        return  # Of a rank on a machine without a cache folder; the chief keeps it.
    log.warning(
        "the index of the records cannot be kept and will be made anew at the next start "
        f"({'; '.join(reasons)}). Pass `index_dir=...`."
    )
