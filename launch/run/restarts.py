"""From one attempt to the next: what a job that failed is worth.

Most ends have nothing to do with the script: a host was taken away, a peer was lost, memory ran
out. The job goes on from its last checkpoint, so it is simply started again. Some ends are for a
person: wrong configuration, checkpoints that cannot be read. And a script may fail for a reason of
its own, each time at the same place. That cannot be told from the exit code, but from the lack of
progress: a job that was started `attempts` times in a row without gaining a step, by which is meant
a later checkpoint, is given up.

The first restart after a gain is immediate, because a job that has just got on most likely will
again. From then on each waits three times as long as the one before: what is down, such as the
store, may be up again by then.
"""

from __future__ import annotations

from dataclasses import dataclass

from distrib.errors import EXIT_FINISHED, EXIT_NO_PROGRESS, EXIT_PREEMPTED, NON_RETRYABLE

from .failure import advice
from .liveness import Progress
from .supervisor import Result

ATTEMPTS = 5
SHORTEST_PAUSE, LONGEST_PAUSE = 5.0, 60.0


@dataclass(frozen=True)
class Verdict:
    """What to do after an attempt.

    Attributes:
        exit_code: What the job ends with; `None` if there is another attempt.
        pause: Seconds to wait before it.
        reason: A line for the user; empty if all is well.
    """

    exit_code: int | None
    pause: float
    reason: str


class Restarts:
    """Follows a job from attempt to attempt.

    Args:
        attempts: How many in a row may gain nothing; 0 restarts nothing at all.

    Attributes:
        stalled: How many have gained nothing since the last that did.
        last_error: How the last one failed, in a line.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self.stalled = 0
        self.last_error = ""
        self._step = 0

    def judge(self, result: Result, progress: Progress, error: str, asked_to_stop: bool) -> Verdict:
        """Return what to do after an attempt that has ended.

        Args:
            result: How it ended.
            progress: How far it came.
            error: What the rank that is to blame said last; may be empty.
            asked_to_stop: Whether the launcher was to end the job.
        """
        end = result.end
        if end is None:
            return Verdict(EXIT_FINISHED, 0.0, "")
        self.last_error = f"{end}: {error}" if error else str(end)
        if asked_to_stop or end.code in NON_RETRYABLE or not self._attempts:
            return Verdict(end.exit_code, 0.0, advice(end))
        self._count(progress)
        if self.stalled >= self._attempts:
            return Verdict(EXIT_NO_PROGRESS, 0.0, self._why_given_up())
        pause = 0.0
        if self.stalled > 1:
            pause = min(SHORTEST_PAUSE * 3.0 ** (self.stalled - 2), LONGEST_PAUSE)
        return Verdict(None, pause, self._why_again(result, pause))

    def _count(self, progress: Progress) -> None:
        if progress.resumed > self._step:  # A commit that nobody lived to tell of.
            self.stalled = 0
        before = max(self._step, progress.resumed)
        self._step = max(before, progress.committed)
        self.stalled = 0 if self._step > before else self.stalled + 1

    def _why_given_up(self) -> str:
        return (
            f"given up: {self._attempts} attempts in a row have gained no step beyond "
            f"{self._step}, the last checkpoint's. The last one ended because {self.last_error}. "
            f"Mend the cause and run the same command again. (exit code {EXIT_NO_PROGRESS})"
        )

    def _why_again(self, result: Result, pause: float) -> str:
        end = result.end
        if end is not None and end.code == EXIT_PREEMPTED:
            why = f"rank {end.rank} on {end.host} was asked to stop, and all did"
        else:
            why = "the job was hanging" if result.hang else self.last_error
        when = f"in {pause:g} s" if pause else "now"
        tries = f", attempt {self.stalled + 1} of {self._attempts} without a gain"
        return f"{why}. Starting again {when}{tries if self.stalled > 1 else ''}."
