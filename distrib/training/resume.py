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
from typing import Any, NoReturn

from keras.src.utils.python_utils import pythonify_logs

from distrib.checkpoint import attempts, progress
from distrib.checkpoint.attempts import Attempt
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.retention import RetentionPolicy
from distrib.checkpoint.saver import Saver
from distrib.cluster import current
from distrib.data.dataset import Dataset
from distrib.environment import grace_seconds, supervision
from distrib.errors import (
    CheckpointError,
    DistribError,
    NoProgressError,
    Preempted,
    on_uncaught_error,
)
from distrib.heartbeat import heartbeat
from distrib.log import log
from distrib.preemption.cloud_notices import NoticePoller, sources
from distrib.preemption.grace_period import GracePeriod, save_fits
from distrib.preemption.stop_request import StopRequest
from distrib.save_policy.interval import Observed
from distrib.save_policy.save_cost import SaveCost
from distrib.save_policy.schedule import SaveSchedule, SaveTimer
from distrib.state.build import build, build_without_data
from distrib.state.run_state import BeforeValidation, Checkpoint, Logs, RunState, TrainingPosition
from distrib.storage.location import describe_error
from distrib.storage.write_check import check_writable
from distrib.training.agreement import agreement
from distrib.training.fit_call import FitCall
from distrib.training.fit_checks import check_call, warn_of_forgetful
from distrib.units import format_duration

# A rank that hears no more of its supervisor lives for a minute.
_LOCK_PATIENCE = 90.0


class Resume:
    """Saving and restoring of one `fit`.

    Args:
        directory: Where the run's checkpoints are.
        schedule: When to save.
        policy: Which checkpoints to keep; `None` keeps all.
        delete_checkpoint: Whether to remove them when training has finished.
    """

    def __init__(
        self,
        directory: CheckpointDirectory,
        schedule: SaveSchedule,
        policy: RetentionPolicy | None,
        delete_checkpoint: bool,
    ) -> None:
        self._directory = directory
        self._schedule = schedule
        self._policy = policy
        self._delete_checkpoint = delete_checkpoint
        self._position = TrainingPosition()
        self.stop = StopRequest()
        self.active = False
        self.logs = Logs({}, None)
        self._cluster = current()
        self._agreement = agreement()
        # The chief's: no other rank touches storage.
        self._saver: Saver | None = None
        self._attempt: Attempt | None = None
        self._failure: DistribError | None = None

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
        check_call(call, self._schedule)
        self._supervisor = supervision()
        self._grace = GracePeriod(grace_seconds())
        self._sources = sources()
        if call.dataset is not None:
            build(model, call.dataset.element_spec)
        else:
            build_without_data(model)
        self._contents = RunState(model, self._describe_data())
        checkpoint = self._open_directory() if self._cluster.is_chief else None
        self._checkpoint = self._cluster.collectives.broadcast(checkpoint)
        if self._checkpoint is not None:
            self._contents.check(self._checkpoint)
        self._check_progress()

    def begin(self, callbacks: Sequence[Any]) -> None:
        """Take the run over, and restore the checkpoint that `prepare` found or save the first."""
        if self._cluster.is_chief:
            self._take_over()
        self._contents.add_callbacks(callbacks)
        warn_of_forgetful(callbacks)
        self._position = TrainingPosition(epoch=self._call.initial_epoch)
        self._due = SaveTimer(self._schedule, self._observe)
        self._last_saved_step = -1
        self._told_of_skipping = False
        self._pace = SaveCost()
        self._checked_complete = False
        self._model._initial_epoch = None
        self.logs = Logs({}, None)
        if self._checkpoint is None:
            heartbeat.note(resumed=0)
            self._save(wait=True)
        else:
            self._resume(self._checkpoint)
        self._check_grace()
        self.active = True
        self.stop.listen(within=self._call.code)
        self._watch = NoticePoller(self._sources, self.stop)

    def _open_directory(self) -> Checkpoint | None:
        """Make sure that the run can be saved here, and load what it has left."""
        check_writable(self._directory.location, "directory")
        # The chief of the attempt before may be on a host that was cut off, and not know it yet.
        self._directory.lock(_LOCK_PATIENCE if self._supervisor.attempts else 0.0)
        return self._directory.load_newest(Checkpoint.load)

    @property
    def _start(self) -> int:
        return 0 if self._checkpoint is None else self._checkpoint.position.step

    def _check_progress(self) -> None:
        """Refuse, on all ranks together, what has led nowhere often enough."""
        reason = None
        if self._cluster.is_chief:
            place = self._directory.location
            reason = progress.reason_to_give_up(place, self._start, self._supervisor)
            if reason is not None:
                begun = self._directory.begin(self._cluster.size, self._start, self._supervisor)
                begun.ended(attempts.GIVEN_UP)
                self._directory.unlock()
        reason = self._cluster.collectives.broadcast(reason)
        if reason is not None:
            raise NoProgressError(reason)

    def _take_over(self) -> None:
        """Become the run's newest attempt. Not before all is found to fit: it ends an older one."""
        attempt = self._directory.begin(self._cluster.size, self._start, self._supervisor)
        on_uncaught_error(lambda error: progress.record_failure(attempt, error))
        self._attempt = attempt
        self._saver = Saver(self._directory, self._attempt, self._policy)
        self._directory.remove_orphans(self._attempt.number)

    def _resume(self, checkpoint: Checkpoint) -> None:
        self._position = position = checkpoint.position
        self._last_saved_step = position.step
        self._due.record_save(position.step)
        heartbeat.note(step=position.step)
        if self._cluster.is_chief:
            heartbeat.note(resumed=position.step, committed=position.step)
        self.logs = checkpoint.logs
        self._contents.restore(checkpoint)
        epochs = self._call.epochs
        ended = position.stop and not position.train_done
        # Keras's own BackupAndRestore tells `fit` by this attribute where to begin.
        self._model._initial_epoch = max(position.epoch, epochs) if ended else position.epoch
        if ended:
            self._model.stop_training = True
            log.info(
                f"training was stopped by a callback after epoch {position.epoch}; nothing is left "
                f"to do. To train again remove {self._directory.location}."
            )
        elif position.epoch >= epochs:
            log.info(f"training has finished ({position.epoch} epochs, step {position.step}).")
        else:
            log.info(
                f"resuming from {checkpoint.place}: epoch {position.epoch + 1}/{epochs}, "
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
        save = not last and self._save_requested(step)
        self._agreement.before_step(self._preempt_requested, save)

    def after_batch(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        """Count the batches up to number `batch`, and save or leave if it is time."""
        position, batches = self._position, self._call.batches
        done = batch + 1 if batches is None else min(batch + 1, batches)
        position.step += done - position.batch
        heartbeat.note(step=position.step)
        position.batch = done
        position.stop = bool(self._model.stop_training)
        position.train_done = position.stop or done == batches
        self.logs.batch = logs or {}
        if not self._checked_complete:
            self._contents.check_complete()
            self._checked_complete = True
        preempt, save = self._agreement.after_step(self._preempt_requested)
        if preempt:
            self._preempt()
        # A save that is due at the last batch waits for the end of the epoch.
        if save and self._can_save_here and not position.train_done:
            self._save()
        self._pace.step(writing=not self._is_idle())

    def before_validation(self) -> None:
        """Keep a copy of what validation will change, in case it is left early."""
        if isinstance(self._call.validation_data, Dataset):
            self._call.validation_data.seek(self._position.epoch, 0)
        self._position.train_done = True
        self._before_validation = self._contents.before_validation()

    def after_validation(self) -> None:
        """Leave if a process was asked to stop; the validation will be done again."""
        if self._agreement.agree(self._preempt_requested, False).preempt:
            self._preempt(self._before_validation)

    def after_epoch(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Step to the next epoch, and save or leave if it is time."""
        stop = bool(self._model.stop_training)
        self._position = TrainingPosition(step=self._position.step, epoch=epoch + 1, stop=stop)
        self.logs.epoch = pythonify_logs(logs)
        self._due.epoch_ended()
        last = stop or epoch + 1 >= self._call.epochs
        save = not last and self._save_requested(self._position.step)
        preempt, save = self._agreement.agree(self._preempt_requested, save)
        if last:
            self._save(wait=True)
        elif preempt:
            self._preempt()
        elif save:
            self._save()
        self._pace.skip_next_step()

    def end(self) -> None:
        """Finish saving after the last `on_train_end`."""
        self.active = False
        self._watch.end()
        self._close(attempts.FINISHED)
        self.stop.ignore()
        self._model._initial_epoch = None
        if self._saver is not None and self._delete_checkpoint:
            self._directory.delete()
        self._directory.unlock()
        self._cluster.collectives.barrier()

    # Saving

    @property
    def _can_save_here(self) -> bool:
        return self._call.dataset is not None or self._position.batch == 0

    @property
    def _preempt_requested(self) -> bool:
        return self.stop.requested or self._failure is not None

    def _save_requested(self, step: int) -> bool:
        """Whether this rank wants a save after `step`. One that would have to wait is skipped."""
        if self._saver is None or not self._due.is_due(step):
            return False
        if self._is_idle():
            return True
        if not self._told_of_skipping and self._failure is None:
            log.info(
                f"skipped the checkpoint of step {step}: that of step {self._last_saved_step} is "
                f"still being written to {self._directory.location}."
            )
            self._told_of_skipping = True
        self._due.record_save(step)
        return False

    def _is_idle(self) -> bool:
        """Whether a save could begin; an error of the one before is kept for all ranks to see."""
        try:
            return self._saver is None or self._saver.idle
        except DistribError as error:
            self._failure = error
            return False

    def _observe(self) -> Observed:
        """Return what the run has been through, as far as it bears on how often to save."""
        assert self._saver is not None
        assert self._attempt is not None
        entry = self._attempt.entry
        return Observed(
            self._pace.save_cost,
            self._saver.write_time,
            entry.uptime + time.time() - entry.began,
            entry.failures,
        )

    def _preempt(self, before_validation: BeforeValidation | None = None) -> NoReturn:
        self._wait()
        self._watch.end()
        if self._can_save_here and self._save_fits():
            self._save(wait=True, before_validation=before_validation)
            saved = f"checkpoint {self._directory.location / str(self._last_saved_step)} is saved"
        else:
            self._raise_failure()
            saved = self._why_not_saved()
        self._close(attempts.PREEMPTED)
        self.stop.leave()
        # A launcher may end the other ranks as soon as one has ended: not before all is saved.
        self._cluster.collectives.barrier()
        log.info(f"asked to stop: {saved}. Run the same command again to go on.")
        raise Preempted

    def _save_fits(self) -> bool:
        """Whether the present state is saved, or can be before this process is killed."""
        if self._position.step == self._last_saved_step:
            return True
        left = self._grace.left(self.stop)
        return save_fits(self._cluster.collectives, left, self._save_time)

    def _why_not_saved(self) -> str:
        if not self._can_save_here:
            return "the data cannot be resumed within an epoch, so this one will be repeated"
        return (
            f"a save takes {format_duration(self._save_time)}, for which the time that is left "
            f"will not do. The run goes on from checkpoint "
            f"{self._directory.location / str(self._last_saved_step)}, and repeats what came "
            f"after it ({self._position.step - self._last_saved_step} of {self._position.step} "
            "steps)"
        )

    @property
    def _save_time(self) -> float:
        """Seconds that a save takes, on the chief; 0 if unknown."""
        return self._attempt.entry.save_time if self._attempt is not None else 0.0

    def _check_grace(self) -> None:
        self._grace.check(self._save_time, self._pace.step_time)

    def _save(self, wait: bool = False, before_validation: BeforeValidation | None = None) -> None:
        """Save the present state unless this step is saved already. All ranks call it together.

        Args:
            wait: Return only when the checkpoint is committed.
            before_validation: What has to replace the present state of metrics and callbacks.
        """
        if self._position.step != self._last_saved_step:
            self._wait()  # It may still be reading the buffers.
            with self._pace.saving():
                content = self._contents.capture(self._position, self.logs, before_validation)
            if self._saver is not None and content is not None and self._failure is None:
                self._check_grace()
                self._saver.save(content, self._pace.last_wait)
            self._last_saved_step = self._position.step
        self._due.record_save(self._position.step)
        self._told_of_skipping = False
        if wait:
            self._wait()
            self._raise_failure()

    def _wait(self) -> None:
        try:
            if self._saver is not None:
                self._saver.wait()
        except DistribError as error:
            self._failure = self._failure or error

    def _raise_failure(self) -> None:
        """Raise on all ranks, which call it together, what has failed on the chief."""
        failed = self._cluster.collectives.broadcast(self._failure and str(self._failure))
        if self._failure is not None:
            raise self._failure
        if failed:
            raise CheckpointError(f"The chief could not save, so all ranks stop: {failed}")

    def _close(self, how: str) -> None:
        """Finish saving, and write down how the attempt has ended."""
        if self._saver is None or self._attempt is None:
            return
        self._saver.close()
        on_uncaught_error(None)
        try:
            self._attempt.ended(how)
            self._directory.remove_orphans(self._attempt.number + 1)
        except OSError as error:
            place = self._directory.location
            warnings.warn(
                f"Could not tidy up {place}: {describe_error(error, place)}. Nothing is lost.",
                stacklevel=2,
            )

    def _describe_data(self) -> dict[str, Any] | None:
        if self._call.dataset is None:
            return None
        return {**self._call.dataset.fingerprint(), "batches_per_epoch": self._call.batches}
