"""`TensorBoard` whose curves have every point once, whatever happened in between.

Event files can only be added to by the writer that made them. So each run has an id, which stands
in the names of its event files and in its state together with their sizes; restoring a state cuts
the files back to those sizes, removes the run's files that are not listed (they come from attempts
that died later), and goes on in a new file. Other files in the folder are never touched.

Keras writes the model's summary when the callback is given its model, at which time a resumed run
does not know yet that it is one. Here nothing is written before the first epoch or test begins.
"""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras

from distrib.cluster import current
from distrib.errors import ConfigurationError
from distrib.store import local_path

from .base import Resumable


class TensorBoard(Resumable, keras.callbacks.TensorBoard):
    """Log metrics, graphs, weights and profiles for TensorBoard.

    Keras's `TensorBoard`, written by the chief. After a restart, steps and epochs go on where the
    checkpoint was taken, and no point is missing or doubled. Profiles are not part of the state.

    Args:
        log_dir: Local folder for the event files.
        histogram_freq: Epochs between histograms of the weights; 0 for none.
        write_graph: Whether to write the graph of the model.
        write_images: Whether to write the weights as images, along with the histograms.
        write_steps_per_second: Whether to log the speed, per batch and per epoch.
        update_freq: `"epoch"`, `"batch"`, or a number of batches, for batch-level summaries.
        profile_batch: Number of the batch, or pair of first and last, to profile; 0 for none.
        embeddings_freq: Epochs between saves of embedding layers; 0 for none.
        embeddings_metadata: File name of metadata, or dict from layer names to such.

    Raises:
        ConfigurationError: If `log_dir` is not on the local disk, or the package `tensorboard` is
            not installed.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> board = TensorBoard("logs", update_freq="batch")
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=2, callbacks=[board], verbose=0)
    """

    # `_should_write_train_graph` is true until the first batch has been trained.
    state_attributes = (
        "_run_id",
        "_global_train_batch",
        "_global_test_batch",
        "_should_write_train_graph",
        "_should_write_summary",
    )

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "logs",
        histogram_freq: int = 0,
        write_graph: bool = True,
        write_images: bool = False,
        write_steps_per_second: bool = False,
        update_freq: int | str = "epoch",
        profile_batch: int | str | tuple[int, int] = 0,
        embeddings_freq: int = 0,
        embeddings_metadata: str | dict[str, str] | None = None,
    ) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigurationError(
                "TensorBoard needs the package `tensorboard`, which is not installed; "
                'run: pip install "distrib[tensorboard]"'
            )
        super().__init__(
            str(local_path(log_dir, "log_dir")),
            histogram_freq,
            write_graph,
            write_images,
            write_steps_per_second,
            update_freq,
            profile_batch,
            embeddings_freq,
            embeddings_metadata,
        )
        self._writers: dict[str, Any] = {}
        self._run_id = _new_run_id()
        self._should_write_summary = False
        self._is_writing = False

    def set_model(self, model: Any) -> None:
        """Take the model; its summary is written later."""
        self._should_write_summary = False
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start a run of its own; `set_state` makes it the continuation of another."""
        self._run_id = _new_run_id()
        self._global_train_batch = 0
        self._previous_epoch_iterations = 0
        self._is_writing = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start writing if it is the first epoch."""
        self._start_writing()
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the batch and give its number to summaries written inside it."""
        self._start_writing()
        super().on_train_batch_begin(batch, logs)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Give the number of tested batches to summaries written in the test."""
        self._write_summary()
        super().on_test_begin(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the event files."""
        if self._is_writing:
            super().on_train_end(logs)
        self._is_writing = False

    def get_state(self) -> dict[str, Any]:
        """Return the counters, the run's id, and the sizes of its event files in bytes."""
        for writer in self._writers.values():
            writer.flush()
        return super().get_state() | {"files": {n: p.stat().st_size for n, p in self._files()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue the run that the state is from, with its event files as they were then."""
        was_writing = self._is_writing
        if was_writing:
            self._pop_writer()
        self._close_writers()
        self._writers = {}
        self._is_writing = False
        super().set_state(state)
        self._remove_later_events(state["files"])
        if was_writing:
            self._start_writing()

    def _files(self) -> list[tuple[str, Path]]:
        """List the run's event files, as paths relative to `log_dir` and in full."""
        if not current().is_chief:
            return []
        root = Path(self.log_dir)
        paths = root.glob(f"*/events.out.tfevents.*{self._suffix}")
        return [(path.relative_to(root).as_posix(), path) for path in sorted(paths)]

    def _remove_later_events(self, sizes: dict[str, int]) -> None:
        for name, path in self._files():
            if name not in sizes:
                path.unlink()
            elif path.stat().st_size > sizes[name]:
                os.truncate(path, sizes[name])

    @property
    def _suffix(self) -> str:
        return f".{self._run_id}.v2"

    @property
    def _train_writer(self) -> Any:
        return self._writer("train", self._train_dir)

    @property
    def _val_writer(self) -> Any:
        return self._writer("val", self._val_dir)

    def _writer(self, name: str, folder: str) -> Any:
        if name not in self._writers:
            self._writers[name] = (
                self.summary.create_file_writer(folder, filename_suffix=self._suffix)
                if current().is_chief
                else self.summary.create_noop_writer()
            )
        return self._writers[name]

    def _start_writing(self) -> None:
        if not self._is_writing:
            self._is_writing = True
            self._write_summary()
            self._push_writer(self._train_writer, self._global_train_batch)

    def _write_keras_model_summary(self) -> None:
        # Called by `set_model`, which is too early.
        self._should_write_summary = True

    def _write_summary(self) -> None:
        if self._should_write_summary:
            self._should_write_summary = False
            super()._write_keras_model_summary()

    def _write_keras_model_train_graph(self) -> None:
        if current().is_chief:
            super()._write_keras_model_train_graph()

    def _configure_embeddings(self) -> None:
        if current().is_chief:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            super()._configure_embeddings()

    def _log_embeddings(self, epoch: int) -> None:
        if current().is_chief:
            super()._log_embeddings(epoch)

    def _start_trace(self) -> None:
        if current().is_chief:
            super()._start_trace()


def _new_run_id() -> str:
    return f"run-{secrets.token_hex(4)}"
