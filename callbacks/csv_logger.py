"""`CSVLogger` whose file has every epoch exactly once, however often the run was killed.

The state holds the file's bytes, and restoring the state restores the file. Keras opens the file
when training begins, and truncates it unless `append=True`. A resumed run does not know yet at that
moment that it is resumed, so this class opens the file when the first epoch begins.

A remote file is written in a working copy, which is uploaded after every row.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from distrib.cluster import current
from distrib.storage.local_files import replacing
from distrib.storage.locate import locate
from distrib.storage.uploads import uploads
from distrib.storage.working_copy import WorkingCopy
from distrib.storage.write_check import check_writable

from .orphaned_files import remove_orphans


class CSVLogger(keras.callbacks.CSVLogger):
    """Write each epoch's results to a CSV file, one row an epoch.

    Keras's `CSVLogger`, written by the chief. After a restart the file continues as if
    uninterrupted: rows that a killed process wrote after its last checkpoint are removed, and
    written again when the epoch is repeated.

    Args:
        filename: Local path or fsspec URL of the file; its folder is made if it does not exist.
        separator: Separates the values of a row. Defaults to `","`.
        append: Whether a new run appends to an existing file instead of replacing it. A resumed run
            continues the file in either case. Defaults to `False`.
        storage_options: Passed to fsspec's file system, for a URL. Defaults to `None`.

    Raises:
        ConfigurationError: If `filename` or `storage_options` is invalid (here), or the folder
            cannot be written (when training starts).
        UploadError: While training, if a remote file cannot be written.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> log = CSVLogger("log.csv")
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=2, callbacks=[log], verbose=0)
    >>> open("log.csv").readline().strip()
    'epoch,loss,val_loss'
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        separator: str = ",",
        append: bool = False,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._location = locate(filename, "filename", storage_options)
        self._working_copy = WorkingCopy(self._location.parent)
        self._path = self._working_copy.path / self._location.name
        super().__init__(str(self._path), separator, append)
        self.keys: list[str] | None = None
        self._is_open = False
        self._is_resumed = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Close the file of an earlier `fit`; the new one is opened at the first epoch."""
        self._close()
        self._is_resumed = False
        self.keys = None
        self.append_header = True
        if current().is_chief:
            check_writable(self._location.parent, "filename")
            remove_orphans(self._location)
            self._working_copy.fetch(self._location.name)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Open the file in the first epoch."""
        uploads.check()
        self._open()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's row."""
        self._open()
        if self._is_open:
            super().on_epoch_end(epoch, logs)
            self._working_copy.publish()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the file, and wait for its upload."""
        self._open()
        self._close()
        uploads.finish()

    def get_state(self) -> dict[str, Any]:
        """Return the file's bytes, its columns, and whether it still needs a header."""
        content = self._content()
        if self._is_open or self._is_resumed:
            append_header = self.append_header and self.writer is None
        else:
            append_header = content.size == 0
        return {
            "content": content,
            "keys": None if self.keys is None else list(self.keys),
            "append_header": append_header,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the file to what it was when `get_state` was called, and continue it."""
        self._close()
        self._is_resumed = True
        self.keys = None if state["keys"] is None else list(state["keys"])
        self.append_header = state["append_header"]
        content = np.asarray(state["content"], np.uint8).tobytes()
        if not current().is_chief or (self._path.exists() and self._path.read_bytes() == content):
            return
        with replacing(self._path) as temporary:
            temporary.write_bytes(content)

    def _content(self) -> npt.NDArray[np.uint8]:
        # A file that is yet to be truncated counts as empty.
        continues = self._is_open or self._is_resumed or self.append
        readable = continues and current().is_chief and self._path.exists()
        return np.frombuffer(self._path.read_bytes() if readable else b"", np.uint8)

    def _open(self) -> None:
        if self._is_open or not current().is_chief:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._is_resumed:
            self.csv_file = self._path.open("a")
        else:
            super().on_train_begin()
        self._is_open = True
        self._working_copy.publish()

    def _close(self) -> None:
        super().on_train_end()
        self._is_open = False
