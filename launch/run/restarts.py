"""Whether and when a job that failed is started again.

Most failures have nothing to do with the script: a host was taken away, a peer was lost, memory ran
out. The job is then started again and resumes from its last checkpoint. Others need a person, and
restarts would only hide the cause: an exit code that says so (wrong configuration), ranks that do
not belong together, an exception before anything was trained, or the same exception at the same
step twice in a row. Whatever else happens, after `attempts` attempts in a row that committed no
later checkpoint the job fails.

The first restart after progress is immediate, because the cause is most likely gone. Each one after
that waits three times as long as the one before: if, for example, the store is down, it may be up
again by then.
"""

from __future__ import annotations

from dataclasses import dataclass

from distrib.errors import EXIT_FINISHED, EXIT_NO_PROGRESS, EXIT_PREEMPTED, NON_RETRYABLE

from ..hosts.names import rank_name
from .deadlock import SAME_CALLS
from .error_text import NO_ERROR, ErrorText
from .failure import RankExit, failure_report
from .hang_detector import Progress
from .supervisor import AttemptResult
from .transient import may_pass

ATTEMPTS = 5
MIN_DELAY, MAX_DELAY = 5.0, 60.0


@dataclass(frozen=True)
class Decision:
    """What to do after an attempt.

    Attributes:
        exit_code: What the job ends with; `None` if there is another attempt.
        delay: Seconds to wait before the next attempt.
        reason: A line for the user; empty if the job finished.
    """

    exit_code: int | None
    delay: float
    reason: str


@dataclass(frozen=True)
class Failure:
    """What the rank that caused a failure has reported.

    Attributes:
        error: Its last error.
        step: Step after which it failed; `None` if it has reported none.
    """

    error: ErrorText = NO_ERROR
    step: int | None = None


class Restarts:
    """Follows a job from attempt to attempt.

    Args:
        attempts: How many attempts in a row may make no progress; 0 for no restarts at all.

    Attributes:
        stalled: How many attempts have made no progress since the last one that did.
        last_error: How the last attempt failed, in a line.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self.stalled = 0
        self.last_error = ""
        self._step = 0
        self._trained = False
        self._last_failure: tuple[int, str, int | None] | None = None

    def decide(
        self, result: AttemptResult, progress: Progress, failure: Failure, stop_requested: bool
    ) -> Decision:
        """Return what to do after an attempt.

        Args:
            result: How the attempt ended.
            progress: How far it came.
            failure: What the rank that caused the failure has reported.
            stop_requested: Whether the launcher was asked to stop.
        """
        cause = result.cause
        if cause is None:
            return Decision(EXIT_FINISHED, 0.0, "")
        error = failure.error.line
        self.last_error = f"{cause}: {error}" if error else str(cause)
        report = failure_report(cause, error)
        if stop_requested or cause.code in NON_RETRYABLE:
            return Decision(cause.exit_code, 0.0, report)
        if result.mistake:
            text = f"{result.mistake}. {SAME_CALLS}; started again, the job would end like this."
            return Decision(EXIT_NO_PROGRESS, 0.0, f"{text} (exit code {EXIT_NO_PROGRESS})")
        if not self._attempts:
            return Decision(cause.exit_code, 0.0, report)
        self._trained |= progress.trained
        is_repeated = self._is_repeated(cause, failure)
        if cause.is_own and not may_pass(failure.error.chain):
            if not self._trained:
                text = "the job has not trained a batch yet, so it is not started again"
                return Decision(cause.exit_code, 0.0, f"{text}: {report}")
            if is_repeated:
                return Decision(EXIT_NO_PROGRESS, 0.0, self._repeated_message(failure))
        self._count(progress)
        if self.stalled >= self._attempts:
            return Decision(EXIT_NO_PROGRESS, 0.0, self._give_up_message())
        delay = 0.0
        if self.stalled > 1:
            delay = min(MIN_DELAY * 3.0 ** (self.stalled - 2), MAX_DELAY)
        return Decision(None, delay, self._restart_message(result, delay))

    def _is_repeated(self, cause: RankExit, failure: Failure) -> bool:
        """Tell whether the attempt before has failed in the same way, and remember this one."""
        before = self._last_failure
        self._last_failure = (cause.code, failure.error.type, failure.step)
        return before == self._last_failure

    def _count(self, progress: Progress) -> None:
        # The attempt before committed a checkpoint, but died before it could report that.
        if progress.resumed > self._step:
            self.stalled = 0
        before = max(self._step, progress.resumed)
        self._step = max(before, progress.committed)
        self.stalled = 0 if self._step > before else self.stalled + 1

    def _give_up_message(self) -> str:
        return (
            f"given up: {self._attempts} attempts in a row have made no progress beyond "
            f"{self._step}, the last checkpoint's. The last one ended because {self.last_error}. "
            f"Fix the cause and run the same command again. (exit code {EXIT_NO_PROGRESS})"
        )

    def _repeated_message(self, failure: Failure) -> str:
        where = "at the same place" if failure.step is None else f"after step {failure.step}"
        return (
            f"given up: two attempts in a row have failed {where} with the same error: "
            f"{self.last_error.rstrip('.')}. Fix the cause and run the same command again. "
            f"(exit code {EXIT_NO_PROGRESS})"
        )

    def _restart_message(self, result: AttemptResult, delay: float) -> str:
        cause = result.cause
        if cause is not None and cause.code == EXIT_PREEMPTED:
            why = f"{rank_name(cause.rank, cause.host)} was asked to stop, so all ranks stopped"
        else:
            why = "the job was hanging" if result.hang else self.last_error
        when = f"in {delay:g} s" if delay else "now"
        tries = f", attempt {self.stalled + 1} of {self._attempts} without progress"
        return f"{why}. Starting again {when}{tries if self.stalled > 1 else ''}."
