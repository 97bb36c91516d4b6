"""Follows one `fit`: where a run stands, where it continues, and when it is saved or ended.

`ResumableCallbackList` calls a `FitSession` at the right moments of Keras's loop. Saving itself is
in `save_controller.py`, ending the process after a request to stop in `preemption_exit.py`.

A run saves a first checkpoint before its first step. From then on every effect that a killed
process had on files (a CSV row, a plot) is undone by the state that the next one restores, and a
directory that cannot be written is found before any work is done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from distrib.checkpoint import attempts
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.retention import RetentionPolicy
from distrib.cluster import current
from distrib.environment import slurm_restarts
from distrib.heartbeat import heartbeat
from distrib.keras_compat.logs import plain_logs
from distrib.keras_compat.trainer import set_initial_epoch
from distrib.log import log
from distrib.save_policy.schedule import SaveSchedule
from distrib.state.build import build, build_for_epochs
from distrib.state.run_checkpoint import RunCheckpoint
from distrib.state.run_state import RunState
from distrib.state.training_goal import TrainingGoal, renew_patience
from distrib.state.training_position import Logs, TrainingPosition
from distrib.training.agreement import agreement
from distrib.training.callback_list import flat_callbacks
from distrib.training.fit_call import FitCall
from distrib.training.fit_checks import (
    check_call,
    warn_about_mixed_parts,
    warn_about_unsaved_callbacks,
)
from distrib.training.fit_data import describe_data, restart_epoch, warn_if_inexact
from distrib.training.initialization import Initialization
from distrib.training.preemption_exit import PreemptionExit
from distrib.training.run_ending import RunEnding, ending_of, note_end, tell
from distrib.training.save_controller import SaveController
from distrib.training.script_check import OnChange, check_script


class FitSession:
    """Saving and restoring of one `fit`.

    Args:
        directory: Where the run's checkpoints are.
        schedule: When to save.
        policy: Which checkpoints to keep; `None` keeps all.
        delete_checkpoint: Whether to remove them when training has finished.
        on_change: What to do if the script has changed since the checkpoint.
        initialization: What the run begins with if it has no checkpoint. Defaults to `None`, for
            the weights that the model has.
    """

    def __init__(
        self,
        directory: CheckpointDirectory,
        schedule: SaveSchedule,
        policy: RetentionPolicy | None,
        delete_checkpoint: bool,
        on_change: OnChange,
        initialization: Initialization | None = None,
    ) -> None:
        self._schedule = schedule
        self._initialization = initialization
        self._delete_checkpoint = delete_checkpoint
        self._on_change = on_change
        self._pid = os.getpid()
        self._cluster = current()
        self._agreement = agreement()
        self._directory = directory.location.parent
        self._saves = SaveController(directory, schedule, policy)
        self._exit = PreemptionExit(self._saves)
        self._position = TrainingPosition()
        self._ending = RunEnding(over=False)
        self.active = False
        self.logs = Logs({}, None)

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

    @property
    def exit_requested(self) -> bool:
        """Whether this rank has a reason to exit: a request to stop, or a failed save."""
        return self._exit.requested or self._saves.failed

    # Before training

    def prepare(self, call: FitCall) -> None:
        """Build the model, and find, verify and check the checkpoint; nothing is changed yet."""
        self._call, self._model = call, call.model
        callbacks = flat_callbacks(call.arguments["callbacks"])
        self._goal = TrainingGoal.of(call.epochs, callbacks)
        check_call(call, self._schedule)
        if call.dataset is not None:
            build(self._model, call.element_spec)
        else:
            build_for_epochs(self._model, lambda: call.element_spec)
        self._state = RunState(
            self._model,
            describe_data(call),
            call.as_given,
            callbacks,
            call.within_epochs,
            call.fingerprint_of,
        )
        self._checkpoint = self._saves.load_newest()
        if self._checkpoint is not None:
            self._ending = ending_of(self._checkpoint, self._goal, self._directory)
            self._state.check(self._checkpoint)
            changes = self._state.changes_since(self._checkpoint)
            check_script(changes, self._checkpoint.place, self._on_change)
        self._saves.check_progress(self._start)
        if self._checkpoint is None and self._initialization is not None:
            self._initialization.apply(self._state)

    def begin(self, callbacks: Sequence[Any]) -> None:
        """Take the run over, and restore the checkpoint that `prepare` found or save the first."""
        if self._cluster.is_chief:
            directory, found = self._saves.location.parent.url, self._checkpoint is not None
            heartbeat.begin_run(directory, self._start, found)
        self._saves.begin(self._state, self._start)
        self._state.add_callbacks(
            callbacks, self._goal, self._call.dataset, self._call.validation_dataset
        )
        warn_about_unsaved_callbacks(callbacks)
        warn_about_mixed_parts(self._call)
        self._position = TrainingPosition(epoch=self._call.initial_epoch)
        self._checked_complete = False
        set_initial_epoch(self._model, None)
        if self._checkpoint is None:
            self._report_fresh_start()
            self._state.warn_about_unadapted_layers()
            self._saves.save(self._position, self.logs, wait=True)
            warn_if_inexact(self._call, None)
        else:
            self._resume(self._checkpoint, callbacks)
        self._saves.check_grace()
        self.active = True
        self._exit.listen()

    def _report_fresh_start(self) -> None:
        """Say that nothing was found, if the job has run before; `distrib run` knows better."""
        if restarts := slurm_restarts():
            log.info(
                f"nothing is saved in {self._saves.location.parent} yet, although Slurm has queued "
                f"this job again ({restarts} times). If an earlier start has saved elsewhere, give "
                "BackupAndRestore a directory whose name stays the same."
            )

    @property
    def _start(self) -> int:
        return 0 if self._checkpoint is None else self._checkpoint.position.step

    def _resume(self, checkpoint: RunCheckpoint, callbacks: Sequence[Any]) -> None:
        self._position = position = checkpoint.position
        if self._call.dataset is not None and position.batch:
            position.batch = self._call.dataset.step_of(position.batch, checkpoint.ranks)
        self._saves.resumed(position.step)
        heartbeat.note(step=position.step)
        self.logs = checkpoint.logs
        self._state.restore(checkpoint)
        restart_epoch(self._call, position, checkpoint.ranks)
        tell(self._ending, checkpoint, self._goal)
        if self._ending.over:
            set_initial_epoch(self._model, max(position.epoch, self._call.epochs))
            if position.stop and not position.train_done:
                self._model.stop_training = True
            return
        if self._ending.why_continued is not None:
            position.stop = False
            renew_patience(callbacks)
        set_initial_epoch(self._model, position.epoch)
        log.info(
            f"resuming from {checkpoint.place}: epoch {position.epoch + 1}/{self._call.epochs}, "
            f"batch {position.batch}/{self._call.batches or '?'}."
        )
        warn_if_inexact(self._call, position.epoch + 1)

    # During training

    def before_epoch(self, epoch: int) -> None:
        """Set the training data to where the epoch begins or continues."""
        self._position.epoch = epoch
        self._checked_complete = False
        set_initial_epoch(self._model, None)  # Not for a `fit` that a callback calls.
        dataset = self._call.dataset
        if dataset is None or self._position.train_done:
            return
        if dataset.endless and dataset.num_batches is not None:
            done = epoch * (self._call.batches or 0) + self._position.batch
            dataset.seek(*divmod(done, dataset.num_batches))
        else:
            dataset.seek(epoch, self._position.batch)

    def epoch_began(self) -> None:
        """Undo what the callbacks' second `on_epoch_begin` of a resumed epoch has done."""
        self._call.begin_new_pass()
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is not None and (self._position.batch or self._position.train_done):
            self._state.restore(checkpoint)
            self._model.stop_training = self._position.stop

    def before_batch(self, batch: int) -> None:
        """State what this rank requests after the step that begins with batch number `batch`."""
        done = batch + self._model.steps_per_execution
        batches = self._call.batches
        last = batches is not None and done >= batches
        step = self._position.step + done - self._position.batch
        save = not last and self._saves.is_due(step)
        self._agreement.before_step(self.exit_requested, save)

    def after_batch(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        """Count the batches up to number `batch`, and save or exit as the ranks agree."""
        position = self._position
        if self._call.dataset is not None:
            self._call.dataset.trained(batch + 1 - position.batch)
        batches = self._call.batches
        done = batch + 1 if batches is None else min(batch + 1, batches)
        position.step += done - position.batch
        heartbeat.note(step=position.step)
        position.batch = done
        position.stop = bool(self._model.stop_training)
        position.train_done = position.stop or done == batches
        self.logs.batch = logs or {}
        if not self._checked_complete:
            self._state.check_complete()
            self._checked_complete = True
        preempt, save = self._agreement.after_step(self.exit_requested)
        if preempt:
            self._exit.exit(position, self.logs, self._can_save_here)
        # A save that is due at the last batch waits for the end of the epoch.
        if save and self._can_save_here and not position.train_done:
            self._saves.save(position, self.logs)
        self._saves.step_done()

    def before_validation(self) -> None:
        """Keep a copy of what validation will change, in case it is left early."""
        if self._call.validation_dataset is not None:
            self._call.validation_dataset.seek(self._position.epoch, 0)
        self._position.train_done = True
        self._before_validation = self._state.before_validation()

    def after_validation(self) -> None:
        """Exit if a process was asked to stop; the validation will be done again."""
        if self._agreement.agree(self.exit_requested, False).preempt:
            self._exit.exit(self._position, self.logs, self._can_save_here, self._before_validation)

    def after_epoch(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Step to the next epoch, and save or exit as the ranks agree."""
        stop = bool(self._model.stop_training)
        self._position = TrainingPosition(step=self._position.step, epoch=epoch + 1, stop=stop)
        self.logs.epoch = plain_logs(logs)
        self._saves.epoch_ended()
        last = stop or epoch + 1 >= self._call.epochs
        save = not last and self._saves.is_due(self._position.step)
        preempt, save = self._agreement.agree(self.exit_requested, save)
        if last:
            self._saves.save(self._position, self.logs, wait=True)
        elif preempt:
            self._exit.exit(self._position, self.logs, self._can_save_here)
        elif save:
            self._saves.save(self._position, self.logs)
        self._saves.cost.skip_next_step()

    def end(self) -> None:
        """Finish saving after the last `on_train_end`."""
        self.active = False
        self._saves.close(attempts.FINISHED)
        heartbeat.end_run()
        self._exit.close()
        self._saves.release(self._delete_checkpoint)
        if not self._delete_checkpoint:
            note_end(self._directory, self._goal)
        self._cluster.collectives.barrier()

    def close(self) -> None:
        """Release all that the `fit` holds in this process when it has ended, in whatever way."""
        if os.getpid() != self._pid:
            return  # A forked process leaves the `fit` of its parent by an exception.
        self.active = False
        self._exit.close()
        self._saves.abandon(sys.exc_info()[1])

    @property
    def _can_save_here(self) -> bool:
        return self._call.within_epochs or self._position.batch == 0
