"""Finds the files that a path, a URL or a pattern names, and tells when they change."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from distrib.errors import ConfigurationError, DistribError, StoreUnavailableError
from distrib.storage.credentials import WRITTEN_BEFORE, may_be_renewed
from distrib.storage.errors import classify, redact_secrets, retry
from distrib.storage.locate import locate, locate_all
from distrib.storage.location import Location, describe_error

_PARALLEL_LOOKUPS = 16
# Keys under which fsspec's file systems report that a file has changed.
_VERSION_KEYS = (
    *("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "updated"),
    *("last_modified", "modificationTime", "modify", "blob_id", "sha", "created"),
)


class ChangedFileError(OSError):
    """A file is not what it was when it was found; the message names it."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that exists.

    Attributes:
        location: Where it is.
        size: In bytes.
        version: Changes with the content, as far as the file system can tell: an ETag, a
            generation, or the time of the last modification.
    """

    location: Location
    size: int
    version: str

    def __str__(self) -> str:
        return str(self.location)

    def check_unchanged(self) -> None:
        """Look the file up again.

        Raises:
            ChangedFileError: If its size or version is another one, or if it is gone.
            OSError: If it cannot be looked up.
        """
        info = self.location.info()
        if info is None:
            raise ChangedFileError(f"{self} was there when this run started, and is gone")
        # Some file systems write a version in one way for a file, and in another for a folder.
        if not self._is(info) and not any(map(self._is, self._listed())):
            raise ChangedFileError(
                f"{self} was replaced or changed after this run started: start it again, with the "
                "file that it began with"
            )

    def _is(self, info: dict[str, Any]) -> bool:
        return (int(info["size"]), _version(info)) == (self.size, self.version)

    def _listed(self) -> list[dict[str, Any]]:
        filesystem, path = self.location.filesystem, self.location.path.strip("/")
        infos = retry(lambda: filesystem.ls(self.location.parent.path, detail=True))
        return [info for info in infos if info["name"].strip("/") == path]


def find_files(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Sequence[FoundFile],
    argument: str,
    storage_options: dict[str, Any] | None = None,
) -> list[FoundFile]:
    """Return the files that paths, URLs or patterns name, each once, sorted by path.

    Args:
        paths: One or several local paths or fsspec URLs. Each may be a pattern with `*`, `?`,
            `[...]` and `**`, as in `"gs://bucket/train-*.tfrecord"`. As in a shell, a pattern does
            not match names that begin with a dot. Or files that were found before: these are
            returned without another look-up.
        argument: Name of the user's argument, for error messages.
        storage_options: For the URLs' file systems. Defaults to none.

    Raises:
        ConfigurationError: If a path or pattern is invalid, names no file, or cannot be listed.
        StoreUnavailableError: If it cannot be listed now, but perhaps later.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise ConfigurationError(f"`{argument}` is empty; give the files to read.")
    before = [each for each in given if isinstance(each, FoundFile)]
    if before:
        return before
    patterns = [os.fspath(path) for path in given if not isinstance(path, FoundFile)]
    folders = locate_all([_split_pattern(each)[0] for each in patterns], argument, storage_options)
    with ThreadPoolExecutor(min(_PARALLEL_LOOKUPS, len(patterns)), "distrib-find") as pool:
        results = pool.map(partial(_files_of, argument), patterns, folders)
        found = {file.location.url: file for files in results for file in files}
    return [found[url] for url in sorted(found)]


def find_tree(
    folder: str | os.PathLike[str], argument: str, storage_options: dict[str, Any] | None = None
) -> tuple[Location, dict[str, FoundFile]]:
    """Return a folder, and all files in it and below, by their paths relative to it.

    Args:
        folder: Local path or fsspec URL.
        argument: Name of the user's argument, for error messages.
        storage_options: For the URL's file system. Defaults to none.

    Raises:
        ConfigurationError: If there is no file, or the folder cannot be listed.
        StoreUnavailableError: If it cannot be listed now, but perhaps later.
    """
    location = locate(folder, argument, storage_options)
    shown = f"`{argument}={redact_secrets(os.fspath(folder), dict(storage_options or {}))!r}`"
    try:
        infos = retry(lambda: location.filesystem.find(location.path, detail=True))
    except Exception as error:
        raise unreadable(shown, error, location) from error
    prefix = f"{location.path.rstrip('/')}/"
    found = {
        path.removeprefix(prefix): _found(replace(location, path=path), info)
        for path, info in infos.items()
        if path.startswith(prefix)
    }
    if not found:
        raise ConfigurationError(f"{shown}: there is no such folder, or it is empty.")
    return location, found


def unreadable(subject: str, error: Exception, location: Location) -> DistribError:
    """Return the error to raise for data that cannot be read: one that a restart may mend, or not.

    Args:
        subject: What cannot be read, as the message begins.
        error: Raised by the file system, after retries.
        location: Of the data.
    """
    if isinstance(error, ChangedFileError):
        return ConfigurationError(f"{error}.")
    kind = classify(error)
    message = f"{subject}: {describe_error(error, location)}; {kind.remedy}."
    if may_be_renewed(error, location.url):
        return StoreUnavailableError(f"{message} {WRITTEN_BEFORE}")
    return StoreUnavailableError(message) if kind.transient else ConfigurationError(message)


def _files_of(argument: str, pattern: str, location: Location) -> list[FoundFile]:
    _, rest = _split_pattern(pattern)
    filesystem = location.filesystem
    shown = f"`{argument}={redact_secrets(pattern, filesystem.storage_options)!r}`"
    try:
        if rest:
            below = f"{location.path.rstrip('/')}/{rest}"
            infos = retry(lambda: filesystem.glob(below, detail=True))
            infos = {path: infos[path] for path in infos if not _name(path).startswith(".")}
        else:
            infos = {location.path: retry(lambda: filesystem.info(location.path))}
    except FileNotFoundError:
        infos = {}
    except Exception as error:
        raise unreadable(shown, error, location) from error
    files = [
        _found(replace(location, path=path), info)
        for path, info in infos.items()
        if info["type"] == "file"
    ]
    if not files:
        hint = ""
        if re.search(r"\{.*\}", pattern):
            hint = " Braces are no wildcard here: use `*`, or a list of names."
        raise ConfigurationError(f"{shown}: there is no such file.{hint}")
    return files


def _found(location: Location, info: dict[str, Any]) -> FoundFile:
    if info.get("size") is None:  # From some HTTP servers.
        raise ConfigurationError(f"{location}: the server does not tell its size; copy it.")
    return FoundFile(location, int(info["size"]), _version(info))


def _split_pattern(pattern: str) -> tuple[str, str]:
    """Split a path into the folder that holds all matches, and the pattern below it."""
    wildcard = re.search(r"[*?\[]", pattern)
    if wildcard is None:
        return pattern, ""
    folder, slash, _ = pattern[: wildcard.start()].rpartition("/")
    return (folder or slash or "."), pattern[len(folder) + len(slash) :]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _version(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
