"""`LossHistory`: the loss of every batch, as numbers and as plots.

Arrays of doubles hold the losses: a million batches take 12 MB, in memory and in the state.
"""

from __future__ import annotations

import math
import os
from array import array
from importlib.util import find_spec
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from distrib.cluster import current
from distrib.errors import ConfigurationError
from distrib.storage.locate import locate
from distrib.storage.uploads import uploads
from distrib.storage.write_check import check_writable

from .loss_plots import save_epoch_plot, save_run_plot
from .orphaned_files import remove_orphans

HEADER = "epoch,batch,loss\n"


class LossHistory(keras.callbacks.Callback):
    """Keep the loss of every batch, and save plots of it after every epoch.

    A batch's loss is `logs["loss"]` of `on_batch_end`, which in Keras 3 is the mean over the
    epoch's batches up to this one. After every epoch the chief writes, each file atomically:

    - `plot_at_epoch_{epoch}.png`: the losses of that epoch's batches;
    - `loss.png`: the losses of all batches so far, with the `loss` and `val_loss` of the epochs;
    - `loss.csv`: the numbers: epoch and batch, both from 0, and the loss with all its digits.

    A curve of more than 4,000 batches is thinned for drawing: each stretch is drawn by its lowest
    and highest value. The CSV file has every batch. After a restart no batch is missing or doubled.

    Args:
        directory: Local path or fsspec URL of the folder for the files; made if it does not exist.
            One run, one folder.
        storage_options: Passed to fsspec's file system, for a URL. Defaults to `None`.

    Attributes:
        losses: Losses of all batches of the run so far, a list of float (a new one each time).
        per_batch_losses: Losses of the batches of the current or last epoch, likewise.

    Raises:
        ConfigurationError: If `directory` or `storage_options` is invalid, or matplotlib is
            missing (here), or the folder cannot be written (when training starts).
        UploadError: While training, if a remote file cannot be written.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> losses = LossHistory("plots")
    >>> x, y = np.ones((8, 3)), np.ones(8)
    >>> history = model.fit(x, y, batch_size=2, epochs=3, callbacks=[losses], verbose=0)
    >>> len(losses.losses), len(losses.per_batch_losses)
    (12, 4)
    """

    def __init__(
        self, directory: str | os.PathLike[str], storage_options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if find_spec("matplotlib") is None:
            raise ConfigurationError(
                "LossHistory needs the package `matplotlib`, which is not installed; "
                'run: pip install "distrib[plots]"'
            )
        self.directory = locate(directory, "directory", storage_options)
        self._reset()

    def _reset(self) -> None:
        self._losses = array("d")
        self._batches = array("i")
        self._epoch_start = 0
        self._ends: list[tuple[int, int]] = []  # epoch, number of losses at its end
        self._epoch_losses = {"loss": array("d"), "val_loss": array("d")}
        self._rows = [HEADER]

    @property
    def losses(self) -> list[float]:
        """Losses of all batches of the run so far."""
        return self._losses.tolist()

    @property
    def per_batch_losses(self) -> list[float]:
        """Losses of the batches of the current or last epoch."""
        return self._losses[self._epoch_start :].tolist()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the losses of an earlier `fit`."""
        self._reset()
        if current().is_chief:
            check_writable(self.directory, "directory")
            for name in ("loss.csv", "loss.png", "plot_at_epoch_{}.png"):
                remove_orphans(self.directory / name)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the epoch's losses."""
        self._epoch_start = len(self._losses)

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the batch's loss."""
        uploads.check()
        if not logs or "loss" not in logs:
            raise ConfigurationError(
                "LossHistory needs `loss` in the batch's logs, which hold: "
                f"{', '.join(logs or {}) or 'nothing'}. Return it from `train_step`."
            )
        self._batches.append(batch)
        self._losses.append(logs["loss"])

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save the plots and the numbers."""
        self._ends.append((epoch, len(self._losses)))
        for name, values in self._epoch_losses.items():
            values.append((logs or {}).get(name, math.nan))
        if not current().is_chief:
            return
        self._rows.append(self._rows_of(len(self._ends) - 1))
        self._save_numbers()
        with uploads.replacing(self.directory / f"plot_at_epoch_{epoch}.png") as path:
            save_epoch_plot(
                path,
                epoch,
                np.array(self._batches[self._epoch_start :]),
                np.array(self._losses[self._epoch_start :]),
            )
        self._save_run_plot()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for all uploads."""
        uploads.finish()

    def get_state(self) -> dict[str, Any]:
        """Return the losses and where each epoch ends."""
        return {
            "losses": np.array(self._losses),
            "batches": np.array(self._batches),
            "epoch_start": self._epoch_start,
            "ends": np.array(self._ends, np.int64).reshape(-1, 2),
            "epoch_losses": {name: np.array(v) for name, v in self._epoch_losses.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned, and rewrite the files to match."""
        self._losses = _array("d", state["losses"])
        self._batches = _array("i", state["batches"])
        self._epoch_start = state["epoch_start"]
        self._ends = [(int(epoch), int(end)) for epoch, end in state["ends"]]
        self._epoch_losses = {name: _array("d", v) for name, v in state["epoch_losses"].items()}
        if current().is_chief:
            self._rows = [HEADER, *(self._rows_of(i) for i in range(len(self._ends)))]
            self._rewrite_files()

    def _rows_of(self, index: int) -> str:
        epoch, end = self._ends[index]
        start = self._ends[index - 1][1] if index else 0
        pairs = zip(self._batches[start:end], self._losses[start:end], strict=True)
        return "".join(f"{epoch},{batch},{loss!r}\n" for batch, loss in pairs)

    def _rewrite_files(self) -> None:
        """Undo what a killed process wrote after the state was taken.

        Plots of single epochs stay: repeating the epoch replaces them by identical ones.
        """
        if self._ends:
            self._save_numbers()
            self._save_run_plot()
        else:
            uploads.finish()
            (self.directory / "loss.csv").remove()
            (self.directory / "loss.png").remove()

    def _save_numbers(self) -> None:
        with uploads.replacing(self.directory / "loss.csv") as path:
            path.write_text("".join(self._rows), encoding="utf-8", newline="")

    def _save_run_plot(self) -> None:
        steps = np.array(self._batches, np.int64) + 1
        start, done, epoch_steps = 0, 0, []
        for _, end in self._ends:
            steps[start:end] += done
            done = int(steps[end - 1]) if end > start else done
            epoch_steps.append(done)
            start = end
        end_losses = {name: np.array(v) for name, v in self._epoch_losses.items()}
        labelled = {
            label: end_losses[name]
            for name, label in (
                ("loss", "Training loss of the epoch"),
                ("val_loss", "Validation loss"),
            )
            if not np.isnan(end_losses[name]).all()
        }
        with uploads.replacing(self.directory / "loss.png") as path:
            save_run_plot(
                path, steps[:start], np.array(self._losses[:start]), np.array(epoch_steps), labelled
            )


def _array(typecode: str, values: npt.ArrayLike) -> array[Any]:
    return array(typecode, np.asarray(values, typecode).tobytes())
