"""A local folder in which files are written that belong to another place.

Keras and TensorFlow open files by their local paths and add to them, which object stores cannot do.
So a callback writes here, and `publish` sends what has changed. Where the place is on the local
disk it is the folder itself, and there is nothing to send. A run that goes on on another machine
finds the folder empty: what it needs of the place it fetches.
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
        folder: Where the files belong.

    Attributes:
        folder: Where the files belong.
        path: Where to write them.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self.path = folder.local or Path(tempfile.mkdtemp(dir=scratch()))
        # Size in bytes and time of the last change of each file, as it was sent or fetched.
        self._known: dict[str, tuple[int, int]] = {}

    def publish(self) -> None:
        """Send all files that have changed, as they are now, in the background.

        Raises:
            UploadError: If an earlier upload has failed.
        """
        if self.folder.local is not None:
            return
        for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
            name, stamp = path.relative_to(self.path).as_posix(), _stamp(path)
            if self._known.get(name) != stamp:
                copy = scratch() / f"{secrets.token_hex(8)}-{path.name}"
                shutil.copyfile(path, copy)
                uploads.upload(copy, self.folder / name)
                self._known[name] = stamp

    def fetch(self, name: str) -> None:
        """Make a file here what it is in its place; if there is none, have none.

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
            self._known[name] = _stamp(path)

    def cut_back(
        self, subfolder: str, sizes: Mapping[str, int], concerned: Callable[[str], bool]
    ) -> None:
        """Take back what was added to files, here and in their place, since they had some sizes.

        Args:
            subfolder: The folder's subfolder with the files.
            sizes: In bytes, by name relative to the folder. Files that are not in it are removed,
                larger ones are cut. Smaller ones are left alone.
            concerned: Tells by a file's own name whether it is one of those that may be changed.
        """
        here = self.path / subfolder
        for path in sorted(here.iterdir()) if here.is_dir() else []:
            name = f"{subfolder}/{path.name}"
            if concerned(path.name) and name not in sizes:
                path.unlink()
            elif concerned(path.name) and path.stat().st_size > sizes[name]:
                os.truncate(path, sizes[name])
        uploads.finish()
        for own_name in (self.folder / subfolder).names():
            name = f"{subfolder}/{own_name}"
            if concerned(own_name) and name not in sizes:
                (self.folder / name).remove()
            elif concerned(own_name) and (self.folder / name).size() > sizes[name]:
                self.fetch(name)
                os.truncate(self.path / name, sizes[name])
        self.publish()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
