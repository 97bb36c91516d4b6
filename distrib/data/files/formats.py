"""Which source reads files, by their names: what `cluster.dataset` makes of a string."""

from __future__ import annotations

import os
from collections.abc import Callable

from distrib.data.files.arrayrecord import ArrayRecordSource
from distrib.data.files.image_folder import ImageFolderSource
from distrib.data.files.parquet import ParquetSource
from distrib.data.files.source import FileSource
from distrib.data.files.tar import TarSource
from distrib.data.files.tfrecord import TFRecordSource
from distrib.data.files.tfrecord_gzip import GzipTFRecordSource
from distrib.errors import ConfigurationError
from distrib.storage.find_files import find_files
from distrib.storage.locate import locate

# The first that a name contains: shards end in numbers, as in `train.tfrecord-00000-of-00010`.
_FORMATS: dict[str, Callable[..., FileSource]] = {
    ".tfrecord.gz": GzipTFRecordSource,
    ".tfrecords.gz": GzipTFRecordSource,
    ".tfrecord": TFRecordSource,
    ".arrayrecord": ArrayRecordSource,
    ".array_record": ArrayRecordSource,
    ".parquet": ParquetSource,
    ".tar": TarSource,
}


def source_of_files(pattern: str | os.PathLike[str]) -> FileSource:
    """Return the source for a path, a URL or a pattern.

    Args:
        pattern: Names files of one format, or a folder of images with a sub-folder for each class.

    Raises:
        ConfigurationError: If there is no such file, its name tells no format, files differ in
            their formats, or they cannot be read.
    """
    text = os.fspath(pattern)
    name = text.rstrip("/").rpartition("/")[2]
    format = _format_of(name)
    if format is None and not any(sign in text for sign in "*?["):
        return _folder(text)
    files = find_files(text, "source")
    formats = {file: _format_of(file.location.name) for file in files}
    first, kind = next(iter(formats.items()))
    for file, other in formats.items():
        if other is not kind:
            raise ConfigurationError(
                f"`source={text!r}` names files of several formats ({first.location.name}, "
                f"{file.location.name}); write a pattern for one of them."
            )
    if kind is None:
        raise _unknown(text)
    return kind(files)


def _folder(text: str) -> FileSource:
    location = locate(text, "source")
    if not location.is_folder():
        raise _unknown(text)
    for name in location.names():
        if _format_of(name) is not None:
            suffix = next(suffix for suffix in _FORMATS if suffix in name)
            raise ConfigurationError(
                f"`source={text!r}` is a folder with files such as {name}; write "
                f"'{text.rstrip('/')}/*{suffix}*'."
            )
    return ImageFolderSource(text)


def _format_of(name: str) -> Callable[..., FileSource] | None:
    return next((_FORMATS[suffix] for suffix in _FORMATS if suffix in name), None)


def _unknown(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"`source={text!r}`: a string names files with {', '.join(_FORMATS)} in their names, or an "
        "existing folder of images, with a sub-folder for each class. For other names pass the "
        "source of the format, such as `distrib.data.TFRecordSource(...)`; for other formats, an "
        "object with `__len__` and a `__getitem__` that returns one example."
    )
