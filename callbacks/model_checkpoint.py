"""`ModelCheckpoint` that replaces files atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras

from distrib.cluster import current
from distrib.storage.locate import locate, relocate
from distrib.storage.location import Location
from distrib.storage.uploads import uploads
from distrib.storage.write_check import check_writable

from .mixins import PrintsOnChief, StateInAttributes, print_message
from .orphaned_files import remove_orphans


class ModelCheckpoint(StateInAttributes, PrintsOnChief, keras.callbacks.ModelCheckpoint):
    """Save the model or its weights after epochs or every so many batches.

    Keras's `ModelCheckpoint`, which writes each file beside its target and then renames it: a
    reader sees the old file or the new one, even if the process is killed or the disk is full
    during the save. The chief writes. The best value and the count of batches survive restarts.

    A remote file is written on the local disk first and uploaded in the background. A
    `BackupAndRestore` checkpoint that counts on the file is committed after the upload.

    Args:
        filepath: Local path or fsspec URL, with placeholders such as `{epoch:02d}` and
            `{val_loss:.2f}`. Ends in `.keras` (or `.h5`), with `save_weights_only=True`
            in `.weights.h5`.
        monitor: Name of the quantity in `logs` that tells which model is best. Defaults to
            `"val_loss"`.
        verbose: 1 prints what is saved and why, 0 does not. Defaults to `0`.
        save_best_only: Whether to save only when the quantity improves. Defaults to `False`.
        save_weights_only: Whether to save the weights alone. Defaults to `False`.
        mode: `"min"`, `"max"`, or `"auto"`, which goes by the metric. Defaults to `"auto"`.
        save_freq: `"epoch"`, or a number of batches. Defaults to `"epoch"`.
        initial_value_threshold: Value that the first save must beat. Defaults to `None`.
        storage_options: Passed to fsspec's file system, for a URL. Defaults to `None`.

    Raises:
        ConfigurationError: If `filepath` or `storage_options` is invalid (here), or the folder
            cannot be written (when training starts).
        ValueError: If `filepath`'s ending or `save_freq` is invalid.
        OSError: While training, if `filepath` is a directory or cannot be written; for a remote
            file an `UploadError`, which may come a little later.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> best = ModelCheckpoint("best.keras", monitor="loss", save_best_only=True)
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=2, callbacks=[best], verbose=0)
    >>> same = keras.models.load_model("best.keras")
    """

    _state_attributes = ("best", "_batches_seen_since_last_saving", "_last_batch_seen")

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: int | str = "epoch",
        initial_value_threshold: float | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._location = locate(filepath, "filepath", storage_options)
        super().__init__(
            filepath,
            monitor,
            verbose,
            save_best_only,
            save_weights_only,
            mode,
            save_freq,
            initial_value_threshold,
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that the folder can be written, and remove temporary files of killed processes."""
        if current().is_chief:
            check_writable(_fixed_folder(self._location), "filepath")
            remove_orphans(self._location)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time."""
        uploads.check()
        super().on_train_batch_end(batch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for all uploads."""
        uploads.finish()

    def _save_model(self, epoch: int, batch: int | None, logs: dict[str, Any]) -> None:
        # Keras (3.15.1) sets this at the first epoch's end only, so saving the best by batches
        # fails in the first epoch, and would fail after each restart.
        if self.save_best_only and self.monitor_op is None:
            self._set_monitor_op()
        filepath = self._get_file_path(epoch, batch, logs)
        if not self._should_save_model(epoch, batch, logs, filepath) or not current().is_chief:
            return
        target = relocate(self._location, filepath, "filepath")
        if target.local is not None and target.local.is_dir():
            raise OSError(
                "Please specify a non-directory filepath for ModelCheckpoint. "
                f"Filepath used is an existing directory: {filepath}"
            )
        with uploads.replacing(target) as temporary:
            self._write(temporary)
        if self.verbose > 0:
            print_message(f"\nEpoch {epoch + 1}: finished saving model to {filepath}")

    def _write(self, path: Path) -> None:
        if self.save_weights_only:
            self.model.save_weights(str(path), overwrite=True)
        else:
            self.model.save(str(path), overwrite=True)


def _fixed_folder(location: Location) -> Location:
    """Return the deepest parent folder without a placeholder in its path."""
    folder = location.parent
    while "{" in folder.path and folder.parent != folder:
        folder = folder.parent
    return folder
