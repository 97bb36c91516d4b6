"""Finds the files that a path, a URL or a pattern names, and tells when they change."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distrib.errors import ConfigurationError
from distrib.storage.errors import redact_secrets
from distrib.storage.locate import locate
from distrib.storage.location import Location, describe_error

# Keys under which fsspec's file systems report that a file has changed.
_VERSION_KEYS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "updated")


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
        if (int(info["size"]), _version(info)) != (self.size, self.version):
            raise ChangedFileError(
                f"{self} was replaced or changed after this run started: start it again, with the "
                "file that it began with"
            )


def find_files(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    argument: str,
    storage_options: dict[str, Any] | None = None,
) -> list[FoundFile]:
    """Return the files that paths, URLs or patterns name, each once, sorted by path.

    Args:
        paths: One or several local paths or fsspec URLs. Each may be a pattern with `*`, `?`,
            `[...]` and `**`, as in `"gs://bucket/train-*.tfrecord"`. As in a shell, a pattern does
            not match names that begin with a dot.
        argument: Name of the user's argument, for error messages.
        storage_options: For the URLs' file systems. Defaults to none.

    Raises:
        ConfigurationError: If a path or pattern is invalid, names no file, or cannot be listed.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise ConfigurationError(f"`{argument}` is empty; give the files to read.")
    found: dict[str, FoundFile] = {}
    for path in given:
        for file in _files_of(os.fspath(path), argument, storage_options):
            found.setdefault(file.location.url, file)
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
    """
    location = locate(folder, argument, storage_options)
    shown = f"`{argument}={redact_secrets(os.fspath(folder), dict(storage_options or {}))!r}`"
    try:
        infos = location.filesystem.find(location.path, detail=True)
    except Exception as error:
        raise ConfigurationError(f"{shown}: {describe_error(error, location)}.") from error
    prefix = f"{location.path.rstrip('/')}/"
    found = {
        path.removeprefix(prefix): FoundFile(
            replace(location, path=path), int(info["size"]), _version(info)
        )
        for path, info in infos.items()
        if path.startswith(prefix)
    }
    if not found:
        raise ConfigurationError(f"{shown}: there is no such folder, or it is empty.")
    return location, found


def _files_of(
    pattern: str, argument: str, storage_options: dict[str, Any] | None
) -> list[FoundFile]:
    fixed, rest = _split_pattern(pattern)
    location = locate(fixed, argument, storage_options)
    shown = f"`{argument}={redact_secrets(pattern, dict(storage_options or {}))!r}`"
    filesystem = location.filesystem
    try:
        if rest:
            infos = filesystem.glob(f"{location.path.rstrip('/')}/{rest}", detail=True)
            infos = {path: infos[path] for path in infos if not _name(path).startswith(".")}
        else:
            infos = {location.path: filesystem.info(location.path)}
    except FileNotFoundError:
        infos = {}
    except Exception as error:
        raise ConfigurationError(f"{shown}: {describe_error(error, location)}.") from error
    files = [
        FoundFile(replace(location, path=path), int(info["size"]), _version(info))
        for path, info in infos.items()
        if info["type"] == "file"
    ]
    if not files:
        hint = ""
        if re.search(r"\{.*\}", pattern):
            hint = " Braces are no wildcard here: use `*`, or a list of names."
        raise ConfigurationError(f"{shown}: there is no such file.{hint}")
    return files


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
