"""Decides when to save, captures the state, and reports write errors on all ranks.

All ranks capture their states together; the chief alone has a schedule, an attempt in the run's
ledger and a background writer, because no other rank touches storage. An error of the writer is
kept until all ranks can end together.
"""

from __future__ import annotations

import time
import warnings

from distrib.checkpoint import attempts, progress
from distrib.checkpoint.attempts import Attempt
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.retention import RetentionPolicy
from distrib.checkpoint.saver import Saver
from distrib.cluster import current
from distrib.environment import grace_seconds, supervision
from distrib.errors import CheckpointError, DistribError, NoProgressError, translate_error
from distrib.log import log
from distrib.preemption.grace_period import GracePeriod
from distrib.save_policy.interval import Observed
from distrib.save_policy.save_cost import SaveCost
from distrib.save_policy.schedule import SaveSchedule, SaveTimer
from distrib.state.run_checkpoint import RunCheckpoint
from distrib.state.run_state import BeforeValidation, RunState
from distrib.state.training_position import Logs, TrainingPosition
from distrib.storage.location import Location, describe_error
from distrib.storage.write_check import check_writable

# A rank exits about 60 s after it has lost its supervisor.
_LOCK_TIMEOUT_SECONDS = 90.0


class SaveController:
    """Saving of one `fit`.

    Args:
        directory: Where the run's checkpoints are.
        schedule: When to save.
        policy: Which checkpoints to keep; `None` keeps all.

    Attributes:
        last_saved_step: Step of the last checkpoint that was begun, or resumed; -1 for none.
        grace: The time that a request to stop leaves.
        cost: What saves cost this training.
    """

    def __init__(
        self,
        directory: CheckpointDirectory,
        schedule: SaveSchedule,
        policy: RetentionPolicy | None,
    ) -> None:
        self._directory = directory
        self._schedule = schedule
        self._policy = policy
        self._cluster = current()
        self._supervision = supervision()
        self.grace = GracePeriod(grace_seconds())
        self.cost = SaveCost()
        self.last_saved_step = -1
        self._skip_logged = False
        self._ended = False
        # The chief's.
        self._saver: Saver | None = None
        self._attempt: Attempt | None = None
        self._failure: DistribError | None = None

    @property
    def location(self) -> Location:
        """Where the run's checkpoints are."""
        return self._directory.location

    @property
    def last_checkpoint(self) -> Location:
        """Where the last checkpoint is."""
        return self.location / str(self.last_saved_step)

    @property
    def save_time(self) -> float:
        """Seconds that a save takes, on the chief; 0 if unknown."""
        return self._attempt.entry.save_time if self._attempt is not None else 0.0

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written, as far as this rank knows."""
        return self._failure is not None

    # Before training

    def load_newest(self) -> RunCheckpoint | None:
        """Make sure that the run can be saved, and load its newest checkpoint, on all ranks."""
        checkpoint = None
        if self._cluster.is_chief:
            check_writable(self.location, "directory")
            # The chief of the attempt before may be on a host that was cut off, and not know it.
            self._directory.lock(_LOCK_TIMEOUT_SECONDS if self._supervision.attempts else 0.0)
            checkpoint = self._directory.load_newest(RunCheckpoint.load)
        loaded: RunCheckpoint | None = self._cluster.collectives.broadcast(checkpoint)
        return loaded

    def check_progress(self, start: int) -> None:
        """Refuse, on all ranks together, a run whose last attempts have made no progress.

        Args:
            start: Step that this attempt begins with.

        Raises:
            NoProgressError: If as many have as the supervisor allows.
        """
        reason = None
        if self._cluster.is_chief:
            reason = progress.reason_to_give_up(self.location, start, self._supervision)
            if reason is not None:
                attempt = self._directory.begin(self._cluster.size, start, self._supervision)
                attempt.ended(attempts.GIVEN_UP)
                self._directory.unlock()
        reason = self._cluster.collectives.broadcast(reason)
        if reason is not None:
            raise NoProgressError(reason)

    def begin(self, state: RunState, start: int) -> None:
        """Register as the run's newest attempt, which fences off older ones, after all checks.

        Args:
            state: What is saved.
            start: Step that this attempt begins with.
        """
        self._state = state
        self._timer = SaveTimer(self._schedule, self._observe)
        if not self._cluster.is_chief:
            return
        attempt = self._directory.begin(self._cluster.size, start, self._supervision)
        self._attempt = attempt
        self._saver = Saver(self._directory, attempt, self._policy)
        self._directory.remove_orphans(attempt.number)

    def resumed(self, step: int) -> None:
        """Take note that the run goes on from the checkpoint of a step."""
        self.last_saved_step = step
        self._timer.record_save(step)

    # During training

    def epoch_ended(self) -> None:
        """Take note of the end of an epoch."""
        self._timer.epoch_ended()

    def step_done(self) -> None:
        """Take note of a step, for what saves cost."""
        self.cost.step(writing=not self._is_idle())

    def is_due(self, step: int) -> bool:
        """Tell whether this rank requests a save after a step: only the chief does.

        A save that would have to wait for the previous one is skipped, with a message.
        """
        if self._saver is None or not self._timer.is_due(step):
            return False
        if self._is_idle():
            return True
        if not self._skip_logged and self._failure is None:
            log.info(
                f"skipped the checkpoint of step {step}: that of step {self.last_saved_step} is "
                f"still being written to {self.location}."
            )
            self._skip_logged = True
        self._timer.record_save(step)
        return False

    def save(
        self,
        position: TrainingPosition,
        logs: Logs,
        wait: bool = False,
        before_validation: BeforeValidation | None = None,
    ) -> None:
        """Save the state unless this step is saved already. All ranks call it together.

        Args:
            position: Where the run stands.
            logs: What Keras reported last.
            wait: Whether to return only when the checkpoint is committed.
            before_validation: Takes the place of what the validation in progress has changed.

        Raises:
            CheckpointError: With `wait`, on all ranks, if the chief has failed to save.
        """
        if position.step != self.last_saved_step:
            self.wait()  # The writer may still be reading the buffers.
            with self.cost.saving():
                content = self._state.capture(position, logs, before_validation)
            if self._saver is not None and content is not None and self._failure is None:
                self.check_grace()
                self._saver.save(content, self.cost.last_wait)
            self.last_saved_step = position.step
        self._timer.record_save(position.step)
        self._skip_logged = False
        if wait:
            self.wait()
            self.raise_failure()

    def check_grace(self) -> None:
        """Warn, once, if a request to stop leaves too little time for a save."""
        self.grace.check(self.save_time, self.cost.step_time)

    def wait(self) -> None:
        """Return when the save in flight has ended. Its error is kept."""
        try:
            if self._saver is not None:
                self._saver.wait()
        except DistribError as error:
            self._failure = self._failure or error

    def raise_failure(self) -> None:
        """Raise on all ranks, which call it together, what has failed on the chief."""
        failed = self._cluster.collectives.broadcast(self._failure and str(self._failure))
        if self._failure is not None:
            raise self._failure
        if failed:
            raise CheckpointError(f"The chief could not save, so all ranks stop: {failed}")

    # After training

    def close(self, ending: str) -> None:
        """Finish saving, and write down how the attempt has ended.

        Args:
            ending: One of the endings in `attempts`.
        """
        if self._saver is None or self._attempt is None:
            return
        self._ended = True
        self._saver.close()
        try:
            self._attempt.ended(ending)
            self._directory.remove_orphans(self._attempt.number + 1)
        except OSError as error:
            warnings.warn(
                f"Could not tidy up {self.location}: {describe_error(error, self.location)}. "
                "Nothing is lost.",
                stacklevel=2,
            )

    def abandon(self, error: BaseException | None) -> None:
        """Leave the directory to others after a `fit` that has ended early, in whatever way.

        The save in flight is committed first. Does nothing after `close` and `release`.

        Args:
            error: What the `fit` has raised.
        """
        try:
            if self._saver is not None and self._attempt is not None and not self._ended:
                self._ended = True
                self._finish_early(self._saver, self._attempt, error)
        finally:
            self._directory.unlock()

    def _finish_early(self, saver: Saver, attempt: Attempt, error: BaseException | None) -> None:
        if saver.busy:
            log.info(f"`fit` has ended early; checkpoint {self.last_checkpoint} is finished first.")
        try:
            saver.close()
        except DistribError as failure:
            if failure is not error:
                log.warning(str(failure))
        if error is not None and not isinstance(error, SystemExit):
            progress.record_failure(attempt, translate_error(error))

    def release(self, delete: bool) -> None:
        """Leave the directory to others.

        Args:
            delete: Whether to remove all checkpoints.
        """
        if self._saver is not None and delete:
            self._directory.delete()
        self._directory.unlock()

    def _is_idle(self) -> bool:
        """Tell whether a save could begin; an error of the one before is kept for all ranks."""
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
            self.cost.save_cost,
            self._saver.write_time,
            entry.uptime + time.time() - entry.began,
            entry.failures,
        )
