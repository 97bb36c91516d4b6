"""Turns a local path or an fsspec URL from the user into a `Location`, and validates it.

Mistakes are reported here, before training starts. s3fs and gcsfs silently accept unknown options
and URLs that have lost their second slash.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from distrib.errors import ConfigurationError, StoreUnavailableError
from distrib.storage.credentials import WRITTEN_BEFORE, may_be_renewed
from distrib.storage.errors import redact_secrets
from distrib.storage.location import Location

# In seconds. The default of gcsfs is to wait for ever for a server that does not answer.
_REQUEST_TIMEOUT = 60
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_COMMON_OPTIONS = {"listings_expiry_time", "max_paths", "skip_instance_cache", "use_listings_cache"}


def locate(
    url: str | os.PathLike[str], argument: str, storage_options: dict[str, Any] | None = None
) -> Location:
    """Turn a path or an fsspec URL into a `Location`, without a request to the store.

    Args:
        url: Local path, which may begin with `~`; or a URL such as `s3://bucket/runs/17`.
        argument: Name of the user's argument, for error messages.
        storage_options: For the URL's file system: credentials, endpoint and the like. Defaults to
            none.

    Raises:
        ConfigurationError: If the path is empty, the URL or an option is invalid, or the package
            for the URL's protocol is not installed.
        StoreUnavailableError: If the credentials are missing that an earlier attempt had.

    Example:
    >>> locate("s3://bucket/runs/17", "directory") / "log.csv"
    """
    text = os.fspath(url)
    options = dict(storage_options or {})
    shown = f"`{argument}={redact_secrets(text, options)!r}`"
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
    """Return another location in a file system that `locate` has already set up.

    Args:
        location: From `locate`, for a URL with the same protocol and options.
        url: Of the other location.
        argument: Name of the user's argument, for error messages.
    """
    if location.local is not None:
        return locate(url, argument)
    shown = f"`{argument}={url!r}`"
    _check_single_path(url, shown)
    return replace(location, path=_path_in(location.filesystem, url, shown))


def locate_all(
    urls: Sequence[str], argument: str, storage_options: dict[str, Any] | None = None
) -> list[Location]:
    """Turn many paths or URLs into `Location`s, with one file system for all of a server.

    Args:
        urls: As for `locate`.
        argument: See `locate`.
        storage_options: See `locate`. Defaults to none.
    """
    kinds: dict[str | None, Any] = {}
    servers: dict[tuple[str | None, str], Location] = {}
    located = []
    for url in urls:
        protocol, _ = split_protocol(url)
        if protocol not in kinds:
            kinds[protocol] = type(locate(url, argument, storage_options).filesystem)
        server = (protocol, str(kinds[protocol]._get_kwargs_from_urls(url)))
        if server not in servers:
            servers[server] = locate(url, argument, storage_options)
        located.append(relocate(servers[server], url, argument))
    return located


def _locate_remote(text: str, protocol: str, shown: str, options: dict[str, Any]) -> Location:
    _check_single_path(text, shown)
    kind = _class_of(protocol, shown)
    path = _path_in(kind, text, shown)
    _check_options(kind, options, shown)
    given = {**kind._get_kwargs_from_urls(text), **options}
    if "gs" in kind.protocol:
        given.setdefault("requests_timeout", _REQUEST_TIMEOUT)
    # Each location gets its own file system: a cached one would keep the credentials and endpoint
    # that the environment had when it was created.
    given |= {"use_listings_cache": False, "skip_instance_cache": True}
    try:
        filesystem = kind(**given)
    except Exception as error:
        reason = redact_secrets(str(error).strip() or type(error).__name__, options)
        message = (
            f"{shown}: the file system for {protocol!r} cannot be set up: {reason}. Correct "
            "`storage_options` or the environment (see docs/storage.md)."
        )
        if may_be_renewed(error, Location(kind, path).url):
            raise StoreUnavailableError(f"{message} {WRITTEN_BEFORE}") from error
        raise ConfigurationError(message) from error
    return Location(filesystem, path)


def _check_single_path(text: str, shown: str) -> None:
    if "::" in text or re.search(r"[*?\[\]]", text):
        raise ConfigurationError(
            f"{shown} must be a single path: without `::`, and without any of * ? [ ]."
        )


def _path_in(kind: Any, text: str, shown: str) -> str:
    path = kind._strip_protocol(text)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise ConfigurationError(f"{shown} must be a path in a bucket, without `..`.")
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
            f"{shown}: fsspec does not know the protocol {protocol!r}. It knows "
            f"{', '.join(sorted(known))}."
        ) from error


def _check_options(kind: Any, options: dict[str, Any], shown: str) -> None:
    """Reject options that s3fs and gcsfs would silently ignore, such as a misspelt endpoint.

    Capitalized names such as `ServerSideEncryption` are valid: s3fs passes them to the server.
    """
    if not {"s3", "gs"} & set(kind.protocol):
        return
    parameters = [
        parameter
        for parent in kind.__mro__
        for parameter in inspect.signature(parent.__init__).parameters.values()
    ]
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    known = _COMMON_OPTIONS | {p.name for p in parameters if p.kind in named} - {"self"}
    for name in options:
        if name not in known and not name[:1].isupper():
            close = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"it knows {', '.join(sorted(known))}."
            )
            raise ConfigurationError(
                f"`storage_options` of {shown}: {kind.__name__} knows no option {name!r}; {hint}"
            )
