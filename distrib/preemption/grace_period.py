"""Whether a save fits into the time that a request to stop leaves.

Kubernetes, Slurm and `distrib run` kill what is not gone some time after they have asked. How long
a save takes is known as soon as one has been made, or from the ledger, so a run can say at its
start that the time will not do, while somebody can still change it. When the time has come and a
save cannot be done in it, none is begun: the run goes on from its last checkpoint, and the process
ends with an exit code that says so, instead of being killed.
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
    """The time from a request to stop until the kill.

    Args:
        seconds: How long it is; `None` if nobody has said, and saves are made whatever they take.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._told = False

    def left(self, stop: StopRequest) -> float:
        """Return the seconds that this process has left; infinite if nobody has asked it to stop.

        Args:
            stop: The request.
        """
        if self._seconds is None or stop.requested_at is None:
            return math.inf
        return self._seconds - (time.monotonic() - stop.requested_at)

    def check(self, save_time: float, step_time: float) -> None:
        """Say, once, that a request to stop may find too little time.

        In the worst case a save has just begun when the request comes, and ours must wait for it;
        and with several ranks the step in progress is followed by another one, before which all
        have heard of it. So twice both is what it may take. Less than that margin is no reason to
        begin no save when it comes to it: only if one alone takes longer than what is left.

        Args:
            save_time: Seconds that a save takes until it is committed; 0 if unknown.
            step_time: Seconds that a step takes; 0 if unknown.
        """
        needed = 2 * (save_time + step_time)
        if self._told or self._seconds is None or not save_time or needed <= self._seconds:
            return
        self._told = True
        outcome = "will be" if save_time > self._seconds else "may be"
        step = f", a step {format_duration(step_time)}" if step_time else ""
        given, wanted, save = map(format_duration, (self._seconds, needed, save_time))
        log.info(
            f"a request to stop leaves {given} ({GRACE_VARIABLE}) and may need {wanted}: a save "
            f"takes {save}{step}, and one that is in flight comes first. What was trained since "
            f"the last checkpoint {outcome} lost then. Give it more time ({GRACE_VARIABLE}, and "
            "`terminationGracePeriodSeconds` in Kubernetes), or lose less with a smaller "
            "`save_freq`."
        )


def save_fits(collectives: Collectives, left: float, save_time: float) -> bool:
    """Tell whether a save fits into the time left. All ranks ask together, and get one answer.

    Args:
        collectives: Of the ranks.
        left: Seconds that this rank has.
        save_time: Seconds that a save takes; 0 on ranks that do not know.
    """
    everybody = collectives.allgather((left, save_time))
    return min(left for left, _ in everybody) >= max(save_time for _, save_time in everybody)
