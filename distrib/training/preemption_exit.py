"""Ends the process after a request to stop, with the state saved if the time allows it."""

from __future__ import annotations

from typing import NoReturn

from distrib.checkpoint import attempts
from distrib.cluster import current
from distrib.errors import Preempted
from distrib.log import log
from distrib.preemption.cloud_notices import NoticePoller, sources
from distrib.preemption.grace_period import save_fits
from distrib.preemption.stop_request import StopRequest
from distrib.state.run_state import BeforeValidation
from distrib.state.training_position import Logs, TrainingPosition
from distrib.training.save_controller import SaveController
from distrib.units import format_duration


class PreemptionExit:
    """Listens to requests to stop while a `fit` trains, and ends the process.

    Args:
        saves: Saves the run.
    """

    def __init__(self, saves: SaveController) -> None:
        self._saves = saves
        self._stop = StopRequest()
        self._sources = sources()
        self._poller: NoticePoller | None = None
        self._exiting = False

    @property
    def requested(self) -> bool:
        """Whether this rank has been asked to stop."""
        return self._stop.requested

    def listen(self) -> None:
        """Take signals and clouds' notices as requests from now on."""
        self._stop.listen()
        self._poller = NoticePoller(self._sources, self._stop)

    def close(self) -> None:
        """Restore the signal handlers, unless the process is exiting."""
        if self._poller is not None:
            self._poller.end()
        if not self._exiting:
            self._stop.restore_handlers()

    def exit(
        self,
        position: TrainingPosition,
        logs: Logs,
        can_save: bool,
        before_validation: BeforeValidation | None = None,
    ) -> NoReturn:
        """Save if that is possible in time, and end the process. All ranks call it together.

        Args:
            position: Where the run stands.
            logs: What Keras reported last.
            can_save: Whether a checkpoint of this position could be resumed.
            before_validation: See `SaveController.save`.

        Raises:
            Preempted: In the end.
            CheckpointError: If the chief has failed to save.
        """
        saves = self._saves
        saves.wait()
        if can_save and self._save_fits(position):
            saves.save(position, logs, wait=True, before_validation=before_validation)
            outcome = f"checkpoint {saves.last_checkpoint} is saved"
        else:
            saves.raise_failure()
            outcome = self._why_not_saved(position, can_save)
        saves.close(attempts.PREEMPTED)
        self._exiting = True
        # A launcher may end the other ranks as soon as one has ended: not before all is saved.
        current().collectives.barrier()
        log.info(f"asked to stop: {outcome}. Run the same command again to go on.")
        raise Preempted

    def _save_fits(self, position: TrainingPosition) -> bool:
        """Tell whether the state is saved, or can be before this process is killed."""
        if position.step == self._saves.last_saved_step:
            return True
        left = self._saves.grace.left(self._stop)
        return save_fits(current().collectives, left, self._saves.save_time)

    def _why_not_saved(self, position: TrainingPosition, can_save: bool) -> str:
        if not can_save:
            return "the data cannot be resumed within an epoch, so this one will be repeated"
        saves = self._saves
        return (
            f"a save takes {format_duration(saves.save_time)}, longer than the time that is left. "
            f"The run goes on from checkpoint {saves.last_checkpoint}, and repeats what came after "
            f"it ({position.step - saves.last_saved_step} of {position.step} steps)"
        )
