"""Copies of a store's files on the local disk, for libraries that read local files only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from distrib.errors import ConfigurationError
from distrib.log import log
from distrib.storage.file_lock import acquire_lock
from distrib.storage.find_files import FoundFile, find_files, unreadable
from distrib.units import format_size

_PARALLEL_FILES = 8


def local_copies(files: Sequence[FoundFile], folder: Path) -> list[FoundFile]:
    """Return local copies of files, made now unless they are there already.

    A copy is named by the file's URL, size and version, so that a changed file is copied anew.
    Processes of one machine wait for the one that copies.

    Args:
        files: In a store.
        folder: Where the copies are kept; created if there is none.

    Raises:
        ConfigurationError: If a file cannot be copied.
        StoreUnavailableError: If it cannot be copied now, but perhaps later.
    """
    copies = [folder / _name(file) for file in files]
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".distrib-lock", "wb"))
            acquire_lock(lock.fileno(), wait=True)
        except OSError as error:
            raise ConfigurationError(f"`cache_dir={str(folder)!r}`: {error}.") from error
        missing = [pair for pair in zip(files, copies, strict=True) if not pair[1].exists()]
        if missing:
            size = format_size(sum(file.size for file, _ in missing))
            log.info(f"copying {len(missing)} files ({size}) to {folder}.")
        with ThreadPoolExecutor(_PARALLEL_FILES, "distrib-copy") as pool:
            list(pool.map(lambda pair: _copy(*pair), missing))
    found = {Path(file.location.path): file for file in find_files(copies, "cache_dir")}
    return [found[copy] for copy in copies]


def _name(file: FoundFile) -> str:
    key = hashlib.sha256(f"{file} {file.size} {file.version}".encode()).hexdigest()[:16]
    return f"{key}-{file.location.name}"


def _copy(file: FoundFile, copy: Path) -> None:
    try:
        file.location.download(copy)
        file.check_unchanged()
    except OSError as error:
        copy.unlink(missing_ok=True)
        raise unreadable(f"{file} cannot be copied to {copy}", error, file.location) from error
