"""`OrbaxCheckpoint` that one process writes, and that a restart does not trip over.

Keras 3.15.1 writes the directory from every process, and a resumed run fails in it: steps that the
killed process saved after the run's last checkpoint exist already when they come again.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import keras
from etils import epath

from distrib.cluster import current
from distrib.errors import ConfigurationError
from distrib.storage.locate import locate
from distrib.storage.scratch import scratch
from distrib.storage.write_check import check_writable

from .mixins import PrintsOnChief, StateInAttributes


class OrbaxCheckpoint(StateInAttributes, PrintsOnChief, keras.callbacks.OrbaxCheckpoint):
    """Save the model or its weights in Orbax format, after epochs or every so many batches.

    Keras's `OrbaxCheckpoint`, written by the chief. The best value and the count of batches survive
    restarts. Steps that a killed process saved after its last `BackupAndRestore` checkpoint are
    removed and saved again. A `BackupAndRestore` checkpoint waits for the save in progress.

    Load with `model.load_weights(directory)`. Do not use `keras.models.load_model`: Keras
    3.15.1 leaves the weights of the rebuilt model untrained, whose variables have other paths.

    To resume training use `BackupAndRestore`, which needs no other callback. Requires a Keras that
    has `keras.callbacks.OrbaxCheckpoint` (3.14 or newer).

    Args:
        directory: Local path of the folder, or a `gs://` URL: Orbax writes there itself, and does
            not know other stores.
        monitor: Name of the quantity in `logs` that tells which model is best. Defaults to
            `"val_loss"`.
        verbose: Verbosity, 0 or 1. Defaults to `0`.
        save_best_only: Whether to save only when the quantity improves. Defaults to `False`.
        mode: `"min"`, `"max"`, or `"auto"`, which goes by the metric. Defaults to `"auto"`.
        save_freq: `"epoch"`, or a number of batches. Defaults to `"epoch"`.
        initial_value_threshold: Value that the first save must beat. Defaults to `None`.
        max_to_keep: Number of steps to keep; `None` keeps all. Defaults to `1`.
        save_on_background: Whether training goes on during a save. Defaults to `True`.
        save_weights_only: Whether to save the weights alone. Defaults to `False`.

    Raises:
        ConfigurationError: If `directory` is on a store that Orbax does not know (here), or cannot
            be written (when training starts).
        FileExistsError: In training, if the directory of a new run has the step already.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> saver = OrbaxCheckpoint("orbax", max_to_keep=2)
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=3, callbacks=[saver], verbose=0)
    >>> model.load_weights(saver.directory)
    """

    # Batches are counted by Keras; `set_model` takes the count before the optimizer is restored.
    _state_attributes = (
        "best",
        "_batches_seen_since_last_saving",
        "_last_batch_seen",
        "_total_batches_seen",
    )

    def __init__(
        self,
        directory: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        mode: str = "auto",
        save_freq: int | str = "epoch",
        initial_value_threshold: float | None = None,
        max_to_keep: int | None = 1,
        save_on_background: bool = True,
        save_weights_only: bool = False,
    ) -> None:
        directory = os.fspath(directory)
        if directory.startswith("gs://"):
            self._location = None
        else:
            self._location = locate(directory, "directory")
            if self._location.local is None:
                raise ConfigurationError(
                    f"`directory={directory!r}`: Orbax writes to the local disk and to gs:// only. "
                    "Use BackupAndRestore to resume from there, or ModelCheckpoint to save the "
                    "model there."
                )
            directory = str(self._location.local)  # Keras 3.14 needs an absolute path.
        super().__init__(
            # Keras makes the folder at once.
            directory if current().is_chief else tempfile.mkdtemp(dir=scratch()),
            monitor,
            verbose,
            save_best_only,
            mode,
            save_freq,
            initial_value_threshold,
            max_to_keep,
            save_on_background,
            save_weights_only,
        )
        self.directory = directory

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that the folder can be written."""
        if current().is_chief and self._location is not None:
            check_writable(self._location, "directory")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time."""
        # Keras (3.15.1) sets this at the first epoch's end only, so saving the best by batches
        # fails in the first epoch, and would fail after each restart.
        if self.save_best_only and self.monitor_op is None:
            self._set_monitor_op()
        super().on_train_batch_end(batch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait until all steps are saved."""
        self.wait_until_finished()  # Keras (3.15.1) hides the error of a save that failed.
        super().on_train_end(logs)

    def get_state(self) -> dict[str, Any]:
        """Return the best value, the counts of batches, and the steps in the folder."""
        self.wait_until_finished()
        return super().get_state() | {"steps": self._steps()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned, and remove the steps that were saved later."""
        super().set_state(state)
        self.wait_until_finished()
        for step in set(self._steps()) - set(state["steps"]):
            (epath.Path(self.directory) / str(step)).rmtree()
        if current().is_chief:
            self.checkpointer.reload()

    def _save_checkpoint(self, step: int, logs: dict[str, Any] | None = None) -> None:
        if current().is_chief:
            super()._save_checkpoint(step, logs)

    def _steps(self) -> list[int]:
        if not current().is_chief:
            return []
        names = (path.name for path in epath.Path(self.directory).iterdir())
        return sorted(int(name) for name in names if name.isdecimal())
