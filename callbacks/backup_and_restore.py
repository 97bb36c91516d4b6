"""`BackupAndRestore`: the callback that makes a run survive its process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.retention import AnyOf, LatestN, RetentionPolicy
from distrib.errors import ConfigurationError, install_exit_codes
from distrib.save_policy.schedule import SaveSchedule
from distrib.storage.locate import locate
from distrib.training import trainer_wrapper
from distrib.training.resumable_fit import RunSaver
from distrib.training.resume import Resume
from distrib.units import parse_duration


class BackupAndRestore(RunSaver):
    """Save the whole training state as a run goes, and continue from it exactly.

    When `fit` starts, the newest sound checkpoint in `directory` is restored and training goes on
    from that step: weights, optimizer, metrics, random seeds, the position in the data, `History`
    and the state of every other callback in the list, wherever they stand in it. The final result
    is the same, bit for bit, as that of a run that nobody interrupted. Without a checkpoint the
    run begins, and saves its first one before the first step.

    SIGTERM and SIGINT (Ctrl-C) let the current step finish, save, and end the process with exit
    code 75: run the same command again to go on. See docs/preemption.md for what else may ask, how
    much time there is, and when a job that gains nothing is given up.

    Checkpoints are written in the background in Orbax format to `<directory>/checkpoints/<step>/`.
    One counts only when its manifest, with the size and CRC32C of every file, is in place. A
    damaged one is set aside with a warning, and the one before is used. Should an older attempt of
    the run still be alive somewhere, it cannot save any more and stops.

    Training data from `cluster.dataset(...)` can be resumed at any step. Other data (arrays, a
    plain `tf.data.Dataset`) can be resumed at the beginning of an epoch, and the order of its
    samples is Keras's business.

    Args:
        directory: Where to keep the run's checkpoints: a local path, or any URL that fsspec knows,
            such as `"s3://bucket/runs/17"` or `"gs://bucket/runs/17"`. One run, one directory.
        save_freq: `"epoch"`, a number of train steps, a time such as `"30s"`, `"5m"` or `"1h"`, or
            `"auto"`, which chooses the time from what saving is found to cost and from how often
            the run has failed, at no more than 3.5 % of the training time (see
            `distrib.save_policy.interval`). A save that is due while another is still being
            written is skipped, with a message. The end of training is always saved.
        keep_last: How many checkpoints to keep; an older one is removed only after a newer one
            is committed. `None` keeps all.
        delete_checkpoint: Remove the checkpoints when training has finished. By default they
            stay, so that a script that is started once more finds its run finished, not absent.
        retention: Names checkpoints to keep besides the last ones, such as
            `BestN(1, "val_loss")` or `EveryNHours(6)` from `distrib.retention`.
        local_cache: Local folder for copies of the newest checkpoint's files, so that a restart on
            the same machine does not fetch them. What is read there is compared with the
            checksums of the checkpoint in `directory`, which alone counts.
        storage_options: Passed to fsspec's file system: credentials, an endpoint. By default they
            are found in the usual places of the store's own tools (see docs/storage.md).

    Raises:
        ConfigurationError: If an argument does not fit (here), or the directory cannot be written
            or is in use by another process (when training starts).
        CheckpointMismatchError: When training starts, if the checkpoint belongs to another model,
            optimizer or dataset; nothing is overwritten.
        NoLoadableCheckpointError: When training starts, if all checkpoints are damaged.
        NoProgressError: When training starts, if as many attempts in a row as the launcher allows
            have gained no step.
        CheckpointError: In training, if a checkpoint cannot be written, as on a full disk. The
            ones before are intact.
        Preempted: In training, after a signal; a `SystemExit` with code 75.

    Example:

    ```python
    model.fit(
        cluster.dataset((x, y), batch_size=128, shuffle=True, seed=7),
        epochs=10,
        callbacks=[BackupAndRestore("runs/17", save_freq=500)],
    )
    ```
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        save_freq: Literal["epoch"] | int | str = "epoch",
        keep_last: int | None = 3,
        delete_checkpoint: bool = False,
        retention: RetentionPolicy | None = None,
        local_cache: str | os.PathLike[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        install_exit_codes()
        trainer_wrapper.install()
        if keep_last is not None and (not isinstance(keep_last, int) or keep_last < 1):
            raise ConfigurationError(f"`keep_last={keep_last!r}` must be at least 1, or None.")
        self.directory = locate(directory, "directory", storage_options)
        self.save_freq = save_freq
        self.keep_last = keep_last
        self.delete_checkpoint = delete_checkpoint
        self.retention = retention
        self.local_cache = None if local_cache is None else self._local_folder(local_cache)
        self._schedule = _parse(save_freq)

    def new_resume(self) -> Resume:
        """See `RunSaver`."""
        directory = CheckpointDirectory(self.directory, self.local_cache)
        return Resume(directory, self._schedule, self._policy(), self.delete_checkpoint)

    def _local_folder(self, local_cache: str | os.PathLike[str]) -> Path:
        folder = locate(local_cache, "local_cache").local
        if folder is None or self.directory.local is not None:
            raise ConfigurationError(
                f"`local_cache={os.fspath(local_cache)!r}` must be a local folder, for a "
                f"`directory` on an object store; here that is {str(self.directory)!r}."
            )
        return folder

    def _policy(self) -> RetentionPolicy | None:
        if self.keep_last is None:
            return None
        latest = LatestN(self.keep_last)
        return latest if self.retention is None else AnyOf(latest, self.retention)


def _parse(save_freq: Any) -> SaveSchedule:
    if save_freq == "epoch":
        return SaveSchedule(epochs=True)
    if save_freq == "auto":
        return SaveSchedule(auto=True)
    if isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0:
        return SaveSchedule(steps=save_freq)
    if isinstance(save_freq, str) and save_freq[-1:].isalpha():
        with suppress(ValueError):
            return SaveSchedule(seconds=parse_duration(save_freq))
    raise ConfigurationError(
        f"`save_freq={save_freq!r}` must be 'epoch', 'auto', a positive number of steps, or a time "
        "such as '30s', '5m' or '1h'."
    )
