"""`TarSource`: WebDataset's tar files as a source with random access."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from distrib.data.files.record_index import RecordFormat
from distrib.data.files.record_source import Paths, RecordSource
from distrib.data.files.tar_format import example_of, scan
from distrib.errors import ConfigurationError

_FORMAT = RecordFormat("tar", scan)


class TarSource(RecordSource):
    """The examples of WebDataset's tar files, on the local disk or in a store, in any order.

    An example is a dict of all members of one basename: `photo/1.jpg` and `photo/1.cls` become
    `{"jpg": b"...", "cls": b"3", "__key__": "photo/1"}`. Extensions are in lower case. The headers
    of all members are read once, and the examples' places kept in an index as for `TFRecordSource`.
    tar has checksums for headers only, so other damage is not noticed.

    Args:
        paths: Paths, fsspec URLs or patterns such as `"gs://bucket/train-*.tar"`, one or a list.
            Examples are numbered in the order of the sorted paths.
        optional: Extensions that an example may lack. All others must be the same for all examples.
            Defaults to `()`.
        index_dir: Folder for the index, a path or a URL. Defaults to `None`: beside the first
            file, as `.distrib-index-*`, or, if that cannot be written, in `~/.cache/distrib`.
        storage_options: Passed to fsspec's file system, for the data and for `index_dir` on a URL.
            Defaults to `None`.

    Raises:
        ConfigurationError: If there is no such file, or one cannot be read, is compressed, damaged
            or no tar file, or an example lacks members that others have.

    Example:

    ```python
    from distrib.data import TarSource

    def decode(example):
        return tf.io.decode_jpeg(example["jpg"], 3), int(example["cls"])

    source = TarSource("gs://bucket/train-*.tar", optional=("json",))
    train = cluster.dataset(source, batch_size=128, shuffle=True, map=decode)
    ```
    """

    def __init__(
        self,
        paths: Paths,
        *,
        optional: Sequence[str] = (),
        index_dir: str | os.PathLike[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(paths, _FORMAT, index_dir, storage_options)
        self._check_members(set(optional))

    def _parse(self, content: bytes, offset: int) -> dict[str, bytes | str]:
        return example_of(content, offset)

    def _check_members(self, optional: set[str]) -> None:
        kinds = [
            (set(extensions) - optional, f"{key!r} of {file}")
            for file, scanned in zip(self._files, self._index.files, strict=True)
            for extensions, key in scanned.notes
        ]
        first, first_name = kinds[0]
        for extensions, name in kinds:
            if extensions == first:
                continue
            more = first - extensions
            complete, lacking = (first_name, name) if more else (name, first_name)
            missing = ", ".join(sorted(more or extensions - first))
            raise ConfigurationError(
                f"`paths`: example {lacking} has no member {missing}, which example {complete} "
                f"has; complete it, or pass `optional={tuple(sorted(more or extensions - first))}`."
            )
