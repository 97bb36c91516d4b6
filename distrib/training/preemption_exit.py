"""Ends the process after a request to stop, with the state saved if the time allows it.

`Preempted` is a `SystemExit`, but does not always end the process: a notebook's kernel, a prompt or
the script itself may catch it. So signal handlers stay only until the next `fit`, and in an
interactive session not beyond this one. There Ctrl-C ends in a `KeyboardInterrupt`, as everywhere
else, so that a prompt keeps what the session has computed.
"""

from __future__ import annotations

import atexit
import os
import signal
from typing import NoReturn

from distrib.checkpoint import attempts
from distrib.cluster import current
from distrib.errors import DistribError, Preempted, in_interactive_session
from distrib.log import ANY_RANK, log
from distrib.preemption.cloud_notices import NoticePoller, sources
from distrib.preemption.grace_period import save_fits
from distrib.preemption.stop_request import SIGNALS, StopRequest
from distrib.preemption.stop_watchdog import StopWatchdog
from distrib.state.run_state import BeforeValidation
from distrib.state.training_position import Logs, TrainingPosition
from distrib.training.save_controller import SaveController
from distrib.units import format_duration

# Of the last `fit`, if it has left its handlers in place, because the process was to end.
_ending: PreemptionExit | None = None


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
        self._watchdog: StopWatchdog | None = None
        self._exiting = False

    @property
    def requested(self) -> bool:
        """Whether this rank has been asked to stop."""
        return self._stop.requested

    def listen(self) -> None:
        """Take signals and clouds' notices as requests from now on."""
        if _ending is not None:
            _ending._release()  # The process did not end.
        self._watchdog = StopWatchdog(self._stop, self._give_up)
        self._stop.listen(self._watchdog.wakeup_fd)
        self._poller = NoticePoller(self._sources, self._stop)

    def close(self) -> None:
        """Restore the signal handlers; in a process that is exiting, ignore further signals."""
        global _ending
        if self._poller is not None:
            self._poller.end()
        if self._exiting and self._watchdog is not None and not in_interactive_session():
            self._stop.ending()
            self._watchdog.fit_ended()
            _ending = self
        else:
            self._release()

    def _release(self) -> None:
        global _ending
        self._stop.restore_handlers()
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        if _ending is self:
            _ending = None

    def _give_up(self) -> None:
        """Say why the watchdog ends the process, after the save in flight."""
        log.warning(
            "asked to stop, but the step in progress does not end: the same signal has probably "
            "killed worker processes that it waits for. The run goes on from "
            f"{self._saves.last_checkpoint}. Run the same command again.",
            extra=ANY_RANK,
        )
        try:
            self._saves.close(attempts.PREEMPTED)
        except DistribError as error:
            log.error(str(error), extra=ANY_RANK)

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
            Preempted: In the end; after Ctrl-C in an interactive session a `KeyboardInterrupt`.
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
        if self._stop.interrupted and in_interactive_session():
            raise KeyboardInterrupt
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


@atexit.register
def _exit_began() -> None:
    """Keep the exit code when Python, which removes handlers before it ends, exits."""
    if _ending is not None and _ending._watchdog is not None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        _ending._watchdog.exit_began()


def _forget_in_child() -> None:
    global _ending
    _ending = None


os.register_at_fork(after_in_child=_forget_in_child)
