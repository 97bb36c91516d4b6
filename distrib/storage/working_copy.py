"""A local working copy of a folder that may be in an object store.

Keras and TensorFlow append to files by their local paths, and object stores have no append. So a
callback writes to the working copy, and `publish` uploads the files that have changed. For a folder
on the local disk the working copy is the folder itself, and nothing is uploaded. A run that resumes
on another machine starts with an empty working copy, and fetches the files that it needs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from distrib.storage.location import Location
from distrib.storage.scratch import scratch
from distrib.storage.uploads import uploads


class WorkingCopy:
    """The working copy of a folder.

    Args:
        folder: Local or remote.

    Attributes:
        folder: Local or remote.
        path: The working copy on the local disk.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self.path = folder.local or Path(tempfile.mkdtemp(dir=scratch()))
        # Size in bytes and modification time of each file when it was last uploaded or fetched.
        self._synced: dict[str, tuple[int, int]] = {}

    def publish(self) -> None:
        """Upload a snapshot of all files that have changed, in the background.

        Raises:
            UploadError: If an earlier upload has failed.
        """
        if self.folder.local is not None:
            return
        for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
            name, stamp = path.relative_to(self.path).as_posix(), _stamp(path)
            if self._synced.get(name) != stamp:
                copy = scratch() / f"{secrets.token_hex(8)}-{path.name}"
                shutil.copyfile(path, copy)
                uploads.upload(copy, self.folder / name)
                self._synced[name] = stamp

    def fetch(self, name: str) -> None:
        """Replace a local file with the folder's; remove it if the folder has none.

        Args:
            name: Relative to the folder, with `/`.
        """
        if self.folder.local is not None:
            return
        uploads.finish()
        path = self.path / name
        try:
            (self.folder / name).download(path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
        else:
            self._synced[name] = _stamp(path)

    def roll_back(
        self, subfolder: str, sizes: Mapping[str, int], selects: Callable[[str], bool]
    ) -> None:
        """Truncate files of a subfolder to earlier sizes, locally and in the store.

        Args:
            subfolder: Of the folder.
            sizes: In bytes, by name relative to the folder. Larger files are truncated, files
                without a size are removed, and smaller files are unchanged.
            selects: Returns whether a file, given its name in the subfolder, may be changed.
        """
        local = self.path / subfolder
        for path in sorted(local.iterdir()) if local.is_dir() else []:
            name = f"{subfolder}/{path.name}"
            if selects(path.name) and name not in sizes:
                path.unlink()
            elif selects(path.name) and path.stat().st_size > sizes[name]:
                os.truncate(path, sizes[name])
        uploads.finish()
        if self.folder.local is not None:
            return
        for file_name in (self.folder / subfolder).names():
            name = f"{subfolder}/{file_name}"
            if selects(file_name) and name not in sizes:
                (self.folder / name).remove()
            elif selects(file_name) and (self.folder / name).size() > sizes[name]:
                self.fetch(name)
                os.truncate(self.path / name, sizes[name])
        self.publish()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
