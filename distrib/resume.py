"""When a run is saved, and where it continues.

`Resume` follows one `fit`: it knows the position (epoch, batch, step), decides when a checkpoint is
due, and puts a restored one back. `fit.py` calls it at the right moments of Keras's loop.

A run saves a first checkpoint before its first step. From then on every effect that a killed
process had on files (a CSV row, a plot) is undone by the state that the next one restores, and a
directory that cannot be written is found before any work is done.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from keras.src.utils.python_utils import pythonify_logs

from distrib.agreement import agreement
from distrib.build import build, build_without_data
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.saver import Saver
from distrib.cluster import current
from distrib.contents import BeforeValidation, Checkpoint, Logs, Position, RunContents
from distrib.data import Dataset
from distrib.errors import ConfigurationError, Preempted
from distrib.fit import FitCall
from distrib.preemption import StopRequest
from distrib.report import say

_FORGETFUL = {
    "CSVLogger",
    "EarlyStopping",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "SwapEMAWeights",
    "TensorBoard",
}


@dataclass(frozen=True)
class Schedule:
    """When a checkpoint is due, besides the first one and the last.

    Attributes:
        epochs: At the end of every epoch.
        steps: Every so many train steps; `None` for never.
        seconds: When so much time has passed since the last one; `None` for never.
    """

    epochs: bool = False
    steps: int | None = None
    seconds: float | None = None


class Resume:
    """Saving and restoring of one `fit`.

    Args:
        directory: Where the run's checkpoints are.
        schedule: When to save.
        keep_last: How many checkpoints to keep; `None` keeps all.
        delete_checkpoint: Whether to remove them when training has finished.
    """

    def __init__(
        self, directory: Path, schedule: Schedule, keep_last: int | None, delete_checkpoint: bool
    ) -> None:
        self._directory = CheckpointDirectory(directory)
        self._schedule = schedule
        self._keep_last = keep_last
        self._delete_checkpoint = delete_checkpoint
        self._position = Position()
        self.stop = StopRequest()
        self.active = False
        self.logs = Logs({}, None)
        self._cluster = current()
        self._agreement = agreement()
        # The chief's: no other rank touches storage.
        self._saver: Saver | None = None

    @property
    def batch(self) -> int:
        """Batches of the current epoch that are done."""
        return self._position.batch

    @property
    def train_done(self) -> bool:
        """Whether the current epoch needs no more batches."""
        return self._position.train_done

    @property
    def stop_requested(self) -> bool:
        """Whether a callback had asked to stop training when the checkpoint was saved."""
        return self._position.stop

    # Before training

    def prepare(self, model: Any, call: FitCall) -> None:
        """Build the model, and find, verify and check the checkpoint; nothing is changed yet."""
        self._model = model
        self._call = call
        self._check_call()
        if call.dataset is not None:
            build(model, call.dataset.element_spec)
        else:
            build_without_data(model)
        self._contents = RunContents(model, self._describe_data())
        checkpoint = self._open_directory() if self._cluster.is_chief else None
        self._checkpoint = self._cluster.collectives.broadcast(checkpoint)
        if self._checkpoint is not None:
            self._contents.check(self._checkpoint)

    def begin(self, callbacks: Sequence[Any]) -> None:
        """Restore the checkpoint that `prepare` found, or save the first one."""
        self._contents.add_callbacks(callbacks)
        _warn_of_forgetful(callbacks)
        self._position = Position(epoch=self._call.initial_epoch)
        self._last_save_time = time.monotonic()
        self._last_saved_step = -1
        self._epoch_save_due = False
        self._checked_complete = False
        self._model._initial_epoch = None
        self.logs = Logs({}, None)
        if self._checkpoint is None:
            self._save(wait=True)
        else:
            self._resume(self._checkpoint)
        self.active = True
        self.stop.listen(within=self._call.code)

    def _open_directory(self) -> Checkpoint | None:
        """Become the only job that writes here, and load what it has left."""
        self._directory.lock()
        self._saver = Saver(self._directory, self._keep_last)
        self._directory.collect_leftovers()
        return self._directory.load_newest(Checkpoint.load)

    def _resume(self, checkpoint: Checkpoint) -> None:
        self._position = position = checkpoint.position
        self._last_saved_step = position.step
        self.logs = checkpoint.logs
        self._contents.restore(checkpoint)
        epochs = self._call.epochs
        ended = position.stop and not position.train_done
        # Keras's own BackupAndRestore tells `fit` by this attribute where to begin.
        self._model._initial_epoch = max(position.epoch, epochs) if ended else position.epoch
        if ended:
            self._model.stop_training = True
            say(
                f"training was stopped by a callback after epoch {position.epoch}; nothing is left "
                f"to do. To train again remove {self._directory.path}."
            )
        elif position.epoch >= epochs:
            say(f"training has finished ({position.epoch} epochs, step {position.step}).")
        else:
            say(
                f"resuming from {checkpoint.path}: epoch {position.epoch + 1}/{epochs}, "
                f"batch {position.batch}/{self._call.batches or '?'}."
            )

    # During training

    def before_epoch(self, epoch: int) -> None:
        """Set the training data to where the epoch begins or continues."""
        self._position.epoch = epoch
        dataset = self._call.dataset
        if dataset is None or self._position.train_done:
            return
        if dataset.endless:
            done = epoch * (self._call.batches or 0) + self._position.batch
            dataset.seek(*divmod(done, dataset.num_batches))
        else:
            dataset.seek(epoch, self._position.batch)

    def epoch_began(self) -> None:
        """Undo what the callbacks' second `on_epoch_begin` of a resumed epoch has done."""
        self._call.drop_iterator()
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is not None and (self._position.batch or self._position.train_done):
            self._contents.restore(checkpoint)

    def before_batch(self, batch: int) -> None:
        """Say what this rank wants to be done after the step that begins with number `batch`."""
        done = batch + self._model.steps_per_execution
        batches = self._call.batches
        last = batches is not None and done >= batches
        step = self._position.step + done - self._position.batch
        due = self._cluster.is_chief and not last and self._due(step) and self._idle
        self._agreement.before_step(self.stop.requested, due)

    def after_batch(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        """Count the batches up to number `batch`, and save or leave if it is time."""
        position, batches = self._position, self._call.batches
        done = batch + 1 if batches is None else min(batch + 1, batches)
        position.step += done - position.batch
        position.batch = done
        position.stop = bool(self._model.stop_training)
        position.train_done = position.stop or done == batches
        self.logs.batch = logs or {}
        if not self._checked_complete:
            self._contents.check_complete()
            self._checked_complete = True
        due = self._due(position.step) and self._idle
        leave, save = self._agreement.after_step(self.stop.requested, due)
        if leave:
            self._leave()
        # A save that is due at the last batch waits for the end of the epoch.
        if save and self._can_save_here and not position.train_done:
            self._save()

    def before_validation(self) -> None:
        """Keep a copy of what validation will change, in case it is left early."""
        if isinstance(self._call.validation_data, Dataset):
            self._call.validation_data.seek(self._position.epoch, 0)
        self._position.train_done = True
        self._before_validation = self._contents.before_validation()

    def after_validation(self) -> None:
        """Leave if a process was asked to stop; the validation will be done again."""
        if self._agreement.ask(self.stop.requested, False).leave:
            self._leave(self._before_validation)

    def after_epoch(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Step to the next epoch, and save or leave if it is time."""
        stop = bool(self._model.stop_training)
        self._position = Position(step=self._position.step, epoch=epoch + 1, stop=stop)
        self.logs.epoch = pythonify_logs(logs)
        self._epoch_save_due = self._schedule.epochs
        due = self._due(self._position.step) and (self._idle or not self._can_save_in_epoch)
        leave, save = self._agreement.ask(self.stop.requested, self._cluster.is_chief and due)
        if stop or epoch + 1 >= self._call.epochs:
            self._save(wait=True)
        elif leave:
            self._leave()
        elif save:
            self._save()

    def end(self) -> None:
        """Finish saving after the last `on_train_end`."""
        self.active = False
        if self._saver is not None:
            self._saver.close()
        self.stop.ignore()
        self._model._initial_epoch = None
        if self._saver is not None and self._delete_checkpoint:
            self._directory.delete()
        else:
            self._directory.unlock()
        self._cluster.collectives.barrier()

    # Saving

    @property
    def _can_save_in_epoch(self) -> bool:
        return self._call.dataset is not None

    @property
    def _can_save_here(self) -> bool:
        return self._can_save_in_epoch or self._position.batch == 0

    @property
    def _idle(self) -> bool:
        return self._saver is None or self._saver.idle

    def _due(self, step: int) -> bool:
        every = self._schedule.steps
        if every and step // every > self._last_saved_step // every:
            return True
        seconds = self._schedule.seconds
        if seconds is not None and time.monotonic() - self._last_save_time >= seconds:
            return True
        return self._epoch_save_due

    def _leave(self, before_validation: BeforeValidation | None = None) -> NoReturn:
        if self._can_save_here:
            self._save(wait=True, before_validation=before_validation)
            saved = f"checkpoint {self._directory.step_path(self._last_saved_step)} is saved"
        else:
            self._wait()
            saved = "the data cannot be resumed within an epoch, so this one will be repeated"
        if self._saver is not None:
            self._saver.close()
        self.stop.leave()
        # A launcher may end the other ranks as soon as one has ended: not before all is saved.
        self._cluster.collectives.barrier()
        say(f"asked to stop: {saved}. Run the same command again to go on.")
        raise Preempted

    def _save(self, wait: bool = False, before_validation: BeforeValidation | None = None) -> None:
        """Save the present state unless this step is saved already. All ranks call it together.

        Args:
            wait: Return only when the checkpoint is committed.
            before_validation: What has to replace the present state of metrics and callbacks.
        """
        if self._position.step != self._last_saved_step:
            self._wait()  # It may still be reading the buffers.
            content = self._contents.capture(self._position, self.logs, before_validation)
            if self._saver is not None and content is not None:
                self._saver.save(content)
            self._last_saved_step = self._position.step
            self._last_save_time = time.monotonic()
        self._epoch_save_due = False
        if wait:
            self._wait()

    def _wait(self) -> None:
        if self._saver is not None:
            self._saver.wait()

    def _describe_data(self) -> dict[str, Any] | None:
        if self._call.dataset is None:
            return None
        return {**self._call.dataset.fingerprint(), "batches_per_epoch": self._call.batches}

    def _check_call(self) -> None:
        dataset, steps = self._call.dataset, self._call.steps_per_epoch
        if dataset is None and (self._schedule.steps or self._schedule.seconds):
            raise ConfigurationError(
                "`save_freq` in steps or time needs data that can be resumed in the middle of an "
                f"epoch, but `fit` was given {type(self._call.data).__name__}. Pass "
                "`cluster.dataset(...)`, or use save_freq='epoch'."
            )
        if dataset is not None and dataset.endless and steps is None:
            raise ConfigurationError("A repeated dataset has no end: pass `steps_per_epoch`.")
        if dataset is None or dataset.endless or steps in (None, dataset.num_batches):
            return
        raise ConfigurationError(
            f"`steps_per_epoch={steps}` differs from the dataset's {dataset.num_batches} batches. "
            "Pass `dataset.repeat()`, which goes on through the data from epoch to epoch, or leave "
            "`steps_per_epoch` out."
        )


def _warn_of_forgetful(callbacks: Sequence[Any]) -> None:
    """Name Keras's own callbacks in the list that have a twin here which survives a restart."""
    for callback in callbacks:
        kind = type(callback)
        if kind.__module__.startswith("keras.") and kind.__name__ in _FORGETFUL:
            warnings.warn(
                f"keras.callbacks.{kind.__name__} forgets its state at a restart; import "
                f"{kind.__name__} from distrib.callbacks to resume exactly.",
                stacklevel=2,
            )
