"""`TensorBoard` whose curves have every point exactly once, however often the run was killed.

Only the writer that made an event file can append to it. So each run has an id, which is part of
the names of its event files. The state holds the id and the files' sizes. Restoring a state
truncates the files to those sizes, removes the run's other files (a killed process wrote them
later), and continues in a new file. Files of other runs in the folder are never touched.

For a remote folder TensorFlow writes into a working copy. Changed files are uploaded after every
epoch and whenever a state is taken, because its sizes must hold for the remote files.

Keras writes the model's summary in `set_model`, when a resumed run does not know yet that it is
resumed. Here nothing is written before the first epoch or test begins.
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
from distrib.storage.locate import locate
from distrib.storage.uploads import uploads
from distrib.storage.working_copy import WorkingCopy
from distrib.storage.write_check import check_writable

from .mixins import StateInAttributes

_FOLDERS = ("train", "validation")


class TensorBoard(StateInAttributes, keras.callbacks.TensorBoard):
    """Log metrics, graphs, weights and profiles for TensorBoard.

    Keras's `TensorBoard`, written by the chief. After a restart, steps and epochs continue from the
    checkpoint, and no point is missing or doubled. Profiles are not part of the state.

    Args:
        log_dir: Local path or fsspec URL of the folder for the event files. Defaults to `"logs"`.
        histogram_freq: Epochs between histograms of the weights; 0 for none. Defaults to `0`.
        write_graph: Whether to write the graph of the model. Defaults to `True`.
        write_images: Whether to write the weights as images with the histograms. Defaults to
            `False`.
        write_steps_per_second: Whether to log the speed, per batch and per epoch. Defaults to
            `False`.
        update_freq: `"epoch"`, `"batch"`, or a number of batches between batch-level summaries.
            Defaults to `"epoch"`.
        profile_batch: Batch to profile, or pair of first and last; 0 for none. Defaults to `0`.
        embeddings_freq: Epochs between saves of embedding layers; 0 for none. Defaults to `0`.
        embeddings_metadata: File name of metadata, or dict of layer names to file names. Defaults
            to `None`.
        storage_options: Passed to fsspec's file system, for a URL. Defaults to `None`.

    Raises:
        ConfigurationError: If `log_dir` or `storage_options` is invalid, or the package
            `tensorboard` is not installed (here), or the folder cannot be written (when training
            starts).
        UploadError: While training, if a remote file cannot be written.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> board = TensorBoard("logs", update_freq="batch")
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=2, callbacks=[board], verbose=0)
    """

    # `_should_write_train_graph` is true until the first batch has been trained.
    _state_attributes = (
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
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigurationError(
                "TensorBoard needs the package `tensorboard`, which is not installed; "
                'run: pip install "distrib[tensorboard]"'
            )
        self._working_copy = WorkingCopy(locate(log_dir, "log_dir", storage_options))
        super().__init__(
            str(self._working_copy.path),
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
        self._earlier_sizes: dict[str, int] = {}  # Of the run's files that earlier processes wrote.

    def set_model(self, model: Any) -> None:
        """Set the model; its summary is written later."""
        self._should_write_summary = False
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start a new run; `set_state` turns it into the continuation of another."""
        self._run_id = _new_run_id()
        self._global_train_batch = 0
        self._previous_epoch_iterations = 0
        self._is_writing = False
        self._earlier_sizes = {}
        if current().is_chief:
            check_writable(self._working_copy.folder, "log_dir")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start writing in the first epoch."""
        self._start_writing()
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the batch, and use its number for summaries written inside it."""
        uploads.check()
        self._start_writing()
        super().on_train_batch_begin(batch, logs)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Use the number of tested batches for summaries written in the test."""
        self._write_summary()
        super().on_test_begin(logs)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Write the results of the test."""
        super().on_test_end(logs)
        if not self._is_writing:  # An `evaluate` of its own.
            self._working_copy.publish()
            uploads.finish()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's results."""
        super().on_epoch_end(epoch, logs)
        self._working_copy.publish()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the event files, and wait for their uploads."""
        if self._is_writing:
            super().on_train_end(logs)
        self._is_writing = False
        self._working_copy.publish()
        uploads.finish()

    def get_state(self) -> dict[str, Any]:
        """Return the counters, the run's id, and the sizes of its event files in bytes."""
        for writer in self._writers.values():
            writer.flush()
        sizes = self._earlier_sizes | {name: path.stat().st_size for name, path in self._files()}
        self._working_copy.publish()
        return super().get_state() | {"files": sizes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue the state's run, with its event files as they were then."""
        was_writing = self._is_writing
        if was_writing:
            self._pop_writer()
        self._close_writers()
        self._writers = {}
        self._is_writing = False
        super().set_state(state)
        self._earlier_sizes = dict(state["files"])
        if current().is_chief:
            for folder in _FOLDERS:
                self._working_copy.cut_back(folder, state["files"], self._is_ours)
        if was_writing:
            self._start_writing()

    def _files(self) -> list[tuple[str, Path]]:
        """List the run's event files here, as paths relative to `log_dir` and in full."""
        if not current().is_chief:
            return []
        root = self._working_copy.path
        paths = [path for folder in _FOLDERS for path in sorted((root / folder).glob("*"))]
        return [(p.relative_to(root).as_posix(), p) for p in paths if self._is_ours(p.name)]

    def _is_ours(self, name: str) -> bool:
        return name.startswith("events.out.tfevents.") and name.endswith(self._suffix)

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
