"""Whether a save fits into the grace period after a request to stop.

Kubernetes, Slurm and `distrib run` kill a process that has not ended within a grace period. The
duration of a save is known after the first one, or from the ledger of an earlier attempt, so a run
warns early that the grace period is too short. If a save does not fit into the time left after a
request, none is begun: the process ends with the exit code of a preemption instead of being killed,
and the run resumes from its last checkpoint.
"""

from __future__ import annotations

import math
import time

from distrib.collectives import Collectives
from distrib.environment import GRACE_VARIABLE
from distrib.log import log
from distrib.preemption.stop_request import StopRequest
from distrib.units import format_duration


class GracePeriod:
    """The time from a request to stop to the kill.

    Args:
        seconds: Length of the grace period; `None` if unknown, so that saves are always begun.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._warned = False

    def left(self, stop: StopRequest) -> float:
        """Return the seconds that this process has left; infinite without a request to stop.

        Args:
            stop: The request to stop.
        """
        if self._seconds is None or stop.requested_at is None:
            return math.inf
        return self._seconds - (time.monotonic() - stop.requested_at)

    def check(self, save_time: float, step_time: float) -> None:
        """Warn, once, if the grace period may be too short for a save.

        In the worst case a save has just begun when the request arrives, and the last save must
        wait for it; and several ranks agree on the request only in the step after the present one.
        So a stop may take two saves and two steps. A shorter time left does not prevent the save in
        the end; `save_fits` then only compares it with the duration of one save.

        Args:
            save_time: Seconds that a save takes until it is committed; 0 if unknown.
            step_time: Seconds that a step takes; 0 if unknown.
        """
        needed = 2 * (save_time + step_time)
        if self._warned or self._seconds is None or not save_time or needed <= self._seconds:
            return
        self._warned = True
        outcome = "will be" if save_time > self._seconds else "may be"
        step = f", a step {format_duration(step_time)}" if step_time else ""
        given, required, save = map(format_duration, (self._seconds, needed, save_time))
        log.info(
            f"a request to stop leaves {given} ({GRACE_VARIABLE}) and may need {required}: a save "
            f"takes {save}{step}, and a save in flight comes first. The steps since the last "
            f"checkpoint {outcome} lost then. Give it more time ({GRACE_VARIABLE}, and "
            "`terminationGracePeriodSeconds` in Kubernetes), or lose less with a smaller "
            "`save_freq`."
        )


def save_fits(collectives: Collectives, left: float, save_time: float) -> bool:
    """Tell whether a save fits into the time left: a collective with one answer for all ranks.

    Args:
        collectives: Collectives between the ranks.
        left: Seconds that this rank has left.
        save_time: Seconds that a save takes; 0 on ranks that do not know.
    """
    of_all_ranks = collectives.allgather((left, save_time))
    return min(left for left, _ in of_all_ranks) >= max(save for _, save in of_all_ranks)
