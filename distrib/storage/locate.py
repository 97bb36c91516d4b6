"""Where files go: from what a user gives, a path or a URL in fsspec's notation, to a `Location`.

Whatever is wrong with it is said here, before training starts: s3fs and gcsfs themselves take an
option that they do not know, or a URL whose second slash got lost, without a word.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
from dataclasses import replace
from typing import Any

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from distrib.errors import ConfigurationError
from distrib.storage.errors import without_secrets
from distrib.storage.location import Location

# Seconds. By itself gcsfs waits for ever for a server that does not answer.
_REQUEST_LIMIT = 60
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_COMMON_OPTIONS = {"listings_expiry_time", "max_paths", "skip_instance_cache", "use_listings_cache"}


def locate(
    url: str | os.PathLike[str], argument: str, storage_options: dict[str, Any] | None = None
) -> Location:
    """Turn a path or an fsspec URL into a `Location`; nothing is asked of the store yet.

    Args:
        url: Local path, which may begin with `~`; or a URL such as `s3://bucket/runs/17`.
        argument: Name of the user's argument, for the message.
        storage_options: For the file system of the URL: credentials, endpoint and the like.

    Raises:
        ConfigurationError: If the path is empty, or the URL or an option does not fit, or the
            package for the URL's protocol is not installed.

    Example:
    >>> locate("s3://bucket/runs/17", "directory") / "log.csv"
    """
    text = os.fspath(url)
    options = dict(storage_options or {})
    shown = f"`{argument}={without_secrets(text, options)!r}`"
    if not text.strip():
        raise ConfigurationError(f"`{argument}` is empty; give the path or URL to write to.")
    if re.match(r"[a-z][a-z0-9]+:/[^/]", text):
        raise ConfigurationError(
            f"{shown} has one slash where a URL has two, as after `pathlib.Path`; give a string."
        )
    protocol, _ = split_protocol(text)
    if protocol not in (None, "file", "local"):
        return _locate_remote(text, str(protocol), shown, options)
    if options:
        raise ConfigurationError(
            f"{shown} is on the local disk, which takes no `storage_options`; leave them out."
        )
    path = LocalFileSystem._strip_protocol(text) if protocol else text
    return Location(LocalFileSystem(), os.path.abspath(os.path.expanduser(path)))


def relocate(location: Location, url: str, argument: str) -> Location:
    """Return another place in a file system that `locate` has already set up.

    Args:
        location: What `locate` made of a URL that begins like `url`.
        url: The other place.
        argument: Name of the user's argument, for the message.
    """
    if location.local is not None:
        return locate(url, argument)
    shown = f"`{argument}={url!r}`"
    _check_one_place(url, shown)
    return replace(location, path=_path_in(location.filesystem, url, shown))


def _locate_remote(text: str, protocol: str, shown: str, options: dict[str, Any]) -> Location:
    _check_one_place(text, shown)
    kind = _class_of(protocol, shown)
    path = _path_in(kind, text, shown)
    _check_options(kind, options, shown)
    given = {**kind._get_kwargs_from_urls(text), **options}
    if "gs" in kind.protocol:
        given.setdefault("requests_timeout", _REQUEST_LIMIT)
    # A file system of its own for each place, because a cached one would keep the environment's
    # credentials and endpoint as they were when the first was made.
    given |= {"use_listings_cache": False, "skip_instance_cache": True}
    try:
        filesystem = kind(**given)
    except Exception as error:
        reason = without_secrets(str(error).strip() or type(error).__name__, options)
        raise ConfigurationError(
            f"{shown}: the file system for {protocol!r} cannot be set up: {reason}. Correct "
            "`storage_options` or the environment (see docs/storage.md)."
        ) from error
    return Location(filesystem, path)


def _check_one_place(text: str, shown: str) -> None:
    if "::" in text or re.search(r"[*?\[\]]", text):
        raise ConfigurationError(
            f"{shown} must name one place: without `::`, and without any of * ? [ ]."
        )


def _path_in(kind: Any, text: str, shown: str) -> str:
    path = kind._strip_protocol(text)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise ConfigurationError(f"{shown} must name a place in a bucket, without `..`.")
    return "/" * path.startswith("/") + "/".join(parts)


def _class_of(protocol: str, shown: str) -> Any:
    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f'run: pip install "distrib[{extra}]"' if extra else str(error)
        raise ConfigurationError(
            f"{shown} needs a package for {protocol!r} that is not installed; {remedy}"
        ) from error
    except ValueError as error:
        known = fsspec.available_protocols()
        raise ConfigurationError(
            f"{shown}: {protocol!r} is not a protocol that fsspec knows. It knows "
            f"{', '.join(sorted(known))}."
        ) from error


def _check_options(kind: Any, options: dict[str, Any], shown: str) -> None:
    """Refuse what s3fs and gcsfs would take without a word, such as a misspelt endpoint.

    s3fs passes on names such as `ServerSideEncryption` to the server.
    """
    if not {"s3", "gs"} & set(kind.protocol):
        return
    parameters = [
        parameter
        for parent in kind.__mro__
        for parameter in inspect.signature(parent.__init__).parameters.values()
    ]
    takes_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    known = _COMMON_OPTIONS | {p.name for p in parameters if p.kind in takes_name} - {"self"}
    for name in options:
        if name not in known and not name[:1].isupper():
            close = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"it knows {', '.join(sorted(known))}."
            )
            raise ConfigurationError(
                f"`storage_options` of {shown}: {kind.__name__} knows no option {name!r}; {hint}"
            )
