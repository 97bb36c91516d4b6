"""`ModelCheckpoint` that never leaves half a file."""

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

    Keras's `ModelCheckpoint`, which writes each file beside its target and then puts it in the
    target's place in one step: whoever reads the target sees the old file or the new one, also when
    the process is killed or the disk is full while writing. The chief writes. The best value and
    the count of batches are kept over restarts.

    A remote file is written on the local disk first and sent in the background. A checkpoint of
    `BackupAndRestore` that knows of it is committed only when it has arrived.

    Args:
        filepath: Local path or fsspec URL, with placeholders such as `{epoch:02d}` and
            `{val_loss:.2f}` if wanted. Ends in `.keras` (or `.h5`), with `save_weights_only=True`
            in `.weights.h5`.
        monitor: Name of the quantity in `logs` that tells which model is best.
        verbose: 1 prints what is saved and why, 0 does not.
        save_best_only: Whether to save only when the quantity improves.
        save_weights_only: Whether to save the weights alone.
        mode: `"min"`, `"max"`, or `"auto"`, which goes by the metric.
        save_freq: `"epoch"`, or a number of batches.
        initial_value_threshold: Value that the first save must beat.
        storage_options: For the file system of a URL.

    Raises:
        ConfigurationError: If `filepath` or `storage_options` does not fit (here), or the folder
            cannot be written (when training starts).
        ValueError: If `filepath`'s ending or `save_freq` does not fit.
        OSError: While training, if `filepath` is a directory or cannot be written; of a remote
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
        self._place = locate(filepath, "filepath", storage_options)
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
        """Look whether files can be written, and remove what killed attempts left half written."""
        if current().is_chief:
            check_writable(_fixed_folder(self._place), "filepath")
            remove_orphans(self._place)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time."""
        uploads.check()
        super().on_train_batch_end(batch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait until all files are where they belong."""
        uploads.finish()

    def _save_model(self, epoch: int, batch: int | None, logs: dict[str, Any]) -> None:
        # Keras (3.15.1) sets this up at the first epoch's end only, so that saving the best by
        # batches fails in the first epoch, and would fail in ours after each restart.
        if self.save_best_only and self.monitor_op is None:
            self._set_monitor_op()
        filepath = self._get_file_path(epoch, batch, logs)
        if not self._should_save_model(epoch, batch, logs, filepath) or not current().is_chief:
            return
        target = relocate(self._place, filepath, "filepath")
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


def _fixed_folder(place: Location) -> Location:
    """The deepest folder of `place` whose name has no placeholder."""
    folder = place.parent
    while "{" in folder.path and folder.parent != folder:
        folder = folder.parent
    return folder
