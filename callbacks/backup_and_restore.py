"""`BackupAndRestore`: the callback that lets a run survive its process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.retention import AnyOf, LatestN, RetentionPolicy
from distrib.errors import ConfigurationError, install_exit_codes
from distrib.save_policy.schedule import SaveSchedule
from distrib.storage.locate import locate
from distrib.storage.location import Location
from distrib.training import trainer_wrapper
from distrib.training.fit_session import FitSession
from distrib.training.initialization import Initialization
from distrib.training.resumable_fit import RunSaver
from distrib.units import parse_duration

# Not in the constructor: `model.fit(..., callbacks=[BackupAndRestore(...)])` calls that only after
# Python has looked up `fit`.
trainer_wrapper.install()


class BackupAndRestore(RunSaver):
    """Save the whole training state during a run, and continue from it exactly.

    When `fit` starts, the newest sound checkpoint in the directory is restored and training
    continues from that step: weights, optimizer, metrics, random seeds, the position in the data,
    `History` and the state of every other callback, in any order of the list. The final result is
    the same, bit for bit, as that of an uninterrupted run. Without a checkpoint the run begins, and
    saves its first one before the first step.

    On SIGTERM or SIGINT (Ctrl-C) the current step finishes, its state is saved, and the process
    ends with exit code 75: run the same command again to continue. docs/preemption.md lists what
    else can request a stop, how much time there is, and when a job without progress is given up.

    Checkpoints are written in the background in Orbax format to `<directory>/checkpoints/<step>/`.
    A checkpoint is valid only with its manifest, which holds the size and CRC32C of every file and
    is written last. A damaged checkpoint is quarantined with a warning, and the one before is used.
    If an older attempt of the run is still alive somewhere, it can no longer save, and stops.

    Arrays, a `PyDataset`, `tf.data` pipelines and `cluster.dataset(...)` are resumed at the very
    step. docs/data.md says what is promised of other data, and what it costs; see `resume`.

    Takes the arguments of `keras.callbacks.BackupAndRestore`, in the same order, and more by name.
    The default of `delete_checkpoint` differs.

    Args:
        backup_dir: Directory for the run's checkpoints: a local path, or any URL that fsspec knows,
            such as `"s3://bucket/runs/17"` or `"gs://bucket/runs/17"`. One run, one directory.
        save_freq: `"epoch"`, a number of train steps, a time such as `"30s"`, `"5m"` or `"1h"`, or
            `"auto"`, which chooses the time from the measured cost of a save and from how often the
            run has failed, at no more than 3.5 % of the training time (see
            `distrib.save_policy.interval`). A save that comes due while another is in progress is
            skipped, with a message. The end of training is always saved. Defaults to `"epoch"`.
        double_checkpoint: `True` keeps at least the last 2 checkpoints, whatever `keep_last` says.
            Defaults to `False`, which leaves the number to `keep_last`.
        delete_checkpoint: Whether to remove the checkpoints when training has finished. Defaults to
            `False` (Keras: `True`), so that a script that is started once more finds its run
            finished instead of starting over.
        directory: Another name of `backup_dir`. Pass one of the two.
        keep_last: Number of checkpoints to keep; an older one is removed only after a newer one is
            committed. `None` keeps all. Defaults to `3`.
        retention: Policy that names further checkpoints to keep, such as `BestN(1, "val_loss")` or
            `EveryNHours(6)` from `distrib.retention`. Defaults to `None`.
        local_cache: Local folder for copies of the newest checkpoint's files, so that a restart on
            the same machine does not download them. Their checksums are compared with those of the
            checkpoint in the directory, which alone counts. Defaults to `None`.
        storage_options: Passed to fsspec's file system: credentials, an endpoint. Defaults to
            `None`: credentials are found where the store's own tools look (see docs/storage.md).
        on_change: What to do if the script has changed since the checkpoint was written: another
            learning rate, loss, layer's or callback's argument, other code or versions. `"warn"`
            logs what differs and which side counts, `"error"` refuses to train, `"ignore"` says
            nothing (see docs/resume.md). Defaults to `"warn"`.
        initialize_from: Another run to begin with: its directory, such as `"runs/17"`, for its
            newest sound checkpoint, or one checkpoint, such as `"runs/17/checkpoints/3500"`. Only
            read, and only if this run has no checkpoint of its own yet. Weights are matched by
            path; those without a counterpart are listed. `storage_options` apply if both
            directories have the same protocol. Defaults to `None`.
        restore: What to take from `initialize_from`: `("model",)`, the weights and statistics, or
            `("model", "optimizer")`, also the optimizer's state but for its learning rate. Defaults
            to `("model",)`.
        resume: How to go on with data whose state cannot be saved: Python generators, and `tf.data`
            pipelines that run Python or draw TensorFlow's random numbers. `"replay"` draws again,
            and drops, all that was drawn before, so the next batch is the very next one; the time
            for that grows with the run. `"epoch"` saves at the end of epochs only and lets the data
            begin again, with the order of their first epoch (see docs/data.md). Defaults to
            `"replay"`, which is never inexact where the data can be repeated.

    Raises:
        ConfigurationError: If an argument is invalid (here), or the directory cannot be written or
            is in use by another process, or this process has already finished a `fit` on it that
            this one does not prolong (when training starts).
        CheckpointMismatchError: When training starts, if the checkpoint belongs to another model,
            optimizer or dataset, or with `on_change="error"` to another script, or if none of the
            weights in `initialize_from` belong to the model; nothing is overwritten.
        NoLoadableCheckpointError: When training starts, if all checkpoints are damaged.
        NoProgressError: When training starts, if the last attempts, as many as the launcher allows,
            have gained no step.
        CheckpointError: In training, if a checkpoint cannot be written, as on a full disk. The
            earlier ones are intact.
        Preempted: In training, after a signal; a `SystemExit` with code 75.

    Example:
    >>> cluster = distrib.init()
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> data = cluster.dataset((np.ones((8, 3)), np.ones(8)), batch_size=2, shuffle=True, seed=7)
    >>> backup = BackupAndRestore("runs/17", save_freq=3)
    >>> history = model.fit(data, epochs=2, callbacks=[backup], verbose=0)
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str] | None = None,
        save_freq: Literal["epoch"] | int | str = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = False,
        *,
        directory: str | os.PathLike[str] | None = None,
        keep_last: int | None = 3,
        retention: RetentionPolicy | None = None,
        local_cache: str | os.PathLike[str] | None = None,
        storage_options: dict[str, Any] | None = None,
        on_change: Literal["warn", "error", "ignore"] = "warn",
        initialize_from: str | os.PathLike[str] | None = None,
        restore: Sequence[Literal["model", "optimizer"]] = ("model",),
        resume: Literal["replay", "epoch"] = "replay",
    ) -> None:
        super().__init__()
        install_exit_codes()
        if not isinstance(double_checkpoint, bool):
            raise ConfigurationError(
                f"`double_checkpoint={double_checkpoint!r}` must be True or False. Pass the number "
                "of checkpoints to keep by name: `keep_last=...`."
            )
        if not isinstance(delete_checkpoint, bool):
            raise ConfigurationError(
                f"`delete_checkpoint={delete_checkpoint!r}` must be True or False."
            )
        if keep_last is not None and not (_is_whole(keep_last) and keep_last >= 1):
            raise ConfigurationError(f"`keep_last={keep_last!r}` must be at least 1, or None.")
        if on_change not in ("warn", "error", "ignore"):
            raise ConfigurationError(
                f"`on_change={on_change!r}` must be 'warn', 'error' or 'ignore'."
            )
        if resume not in ("replay", "epoch"):
            raise ConfigurationError(f"`resume={resume!r}` must be 'replay' or 'epoch'.")
        self.resume = resume
        self.on_change = on_change
        self.directory = locate(_one_of(backup_dir, directory), "directory", storage_options)
        self.save_freq = save_freq
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        self.keep_last = keep_last
        self.retention = retention
        self.local_cache = None if local_cache is None else self._local_folder(local_cache)
        self.initialize_from = initialize_from
        self.restore = _checked_restore(restore)
        self._source = self._locate_source(storage_options)
        self._schedule = _parse_save_freq(save_freq)

    def _new_session(self) -> FitSession:
        """See `RunSaver`."""
        directory = CheckpointDirectory(self.directory, self.local_cache)
        begin = None if self._source is None else Initialization(self._source, self.restore)
        return FitSession(
            directory,
            self._schedule,
            self._policy(),
            self.delete_checkpoint,
            self.on_change,
            begin,
        )

    def _locate_source(self, storage_options: dict[str, Any] | None) -> Location | None:
        if self.initialize_from is None:
            return None
        protocol = os.fspath(self.initialize_from).rpartition("://")[0]
        same = bool(protocol) and self.directory.url.startswith(f"{protocol}://")
        options = storage_options if same else None
        return locate(self.initialize_from, "initialize_from", options)

    def _local_folder(self, local_cache: str | os.PathLike[str]) -> Path:
        folder = locate(local_cache, "local_cache").local
        if folder is None or self.directory.local is not None:
            raise ConfigurationError(
                f"`local_cache={os.fspath(local_cache)!r}` must be a local folder, and "
                f"needs a directory on an object store, not {str(self.directory)!r}."
            )
        return folder

    def _policy(self) -> RetentionPolicy | None:
        if self.keep_last is None:
            return None
        latest = LatestN(max(self.keep_last, 2) if self.double_checkpoint else self.keep_last)
        return latest if self.retention is None else AnyOf(latest, self.retention)


def _one_of(
    backup_dir: str | os.PathLike[str] | None, directory: str | os.PathLike[str] | None
) -> str | os.PathLike[str]:
    if backup_dir is not None and directory is not None:
        raise ConfigurationError(
            f"`backup_dir={os.fspath(backup_dir)!r}` and `directory={os.fspath(directory)!r}` name "
            "the same thing; pass one of them."
        )
    given = directory if backup_dir is None else backup_dir
    if not isinstance(given, str | os.PathLike):
        raise ConfigurationError(
            f'BackupAndRestore needs a directory, as in BackupAndRestore("runs/17"), not {given!r}.'
        )
    return given


def _checked_restore(restore: Any) -> tuple[str, ...]:
    if isinstance(restore, str) or tuple(restore) not in (("model",), ("model", "optimizer")):
        raise ConfigurationError(
            f'`restore={restore!r}` must be ("model",) or ("model", "optimizer").'
        )
    return tuple(restore)


def _is_whole(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _parse_save_freq(save_freq: Any) -> SaveSchedule:
    if save_freq == "epoch":
        return SaveSchedule(epochs=True)
    if save_freq == "auto":
        return SaveSchedule(auto=True)
    if _is_whole(save_freq) and save_freq > 0:
        return SaveSchedule(steps=int(save_freq))
    if isinstance(save_freq, str) and save_freq[-1:].isalpha():
        with suppress(ValueError):
            return SaveSchedule(seconds=parse_duration(save_freq))
    raise ConfigurationError(
        f"`save_freq={save_freq!r}` must be 'epoch', 'auto', a positive number of steps, or a time "
        "such as '30s', '5m' or '1h'."
    )
