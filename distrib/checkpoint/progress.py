"""Detects runs without progress: consecutive attempts that ended at the step they began with.

A supervisor counts these attempts itself. But Kubernetes or Slurm may restart a whole job,
including its supervisor, and for ever, because a retryable exit code is no failure to them. Then
only the ledger has the count. So before an attempt begins, the chief reads the ledger, and gives up
if the allowed number of attempts have begun at the same step and none got further.

A user who has fixed the cause must be able to run the same command again. So giving up is an entry
in the ledger too, which restarts the count.
"""

from __future__ import annotations

import threading
import time
import warnings

from distrib.checkpoint import attempts
from distrib.checkpoint.attempts import FAILED, PREEMPTED, Attempt, Entry
from distrib.checkpoint.transfer import parallel_map
from distrib.environment import Supervision
from distrib.errors import EXIT_NO_PROGRESS, SupersededError
from distrib.storage.location import Location
from distrib.units import format_duration

_MAX_ERROR_LENGTH = 500
# A failed process should exit soon, and the failure may be a store that does not answer.
_RECORD_TIMEOUT_SECONDS = 5.0


def reason_to_give_up(checkpoints: Location, start: int, supervisor: Supervision) -> str | None:
    """Return why the run should give up; `None` if it should make another attempt.

    Args:
        checkpoints: The folder of the run's checkpoints.
        start: Step that the attempt would begin with.
        supervisor: State of the job's supervisor. Without a limit of attempts, the ledger is not
            read.
    """
    if not supervisor.attempts:
        return None
    newest = attempts.newest(checkpoints)
    stalled = newest.stalled_if_next_at(start) if newest is not None else 0
    if newest is None or stalled < supervisor.attempts:
        return None
    numbers = range(newest.attempt - supervisor.attempts + 1, newest.attempt + 1)
    entries = parallel_map(
        lambda number: attempts.read(checkpoints, number), list(numbers), len(numbers)
    )
    reported = [entry.before if entry is not None else "" for entry in entries[1:]]
    lines = [
        f"  attempt {number}{_describe(entry, before) if entry is not None else ''}"
        for number, entry, before in zip(
            numbers, entries, [*reported, supervisor.last_end], strict=True
        )
    ]
    return "\n".join(
        [
            f"given up: {stalled} attempts in a row have made no progress beyond {start}, the "
            f"step of the checkpoint that they began with in {checkpoints}:",
            *lines,
            "Fix the cause and run the same command again: it will resume from there, with "
            f"{supervisor.attempts} attempts. (exit code {EXIT_NO_PROGRESS})",
        ]
    )


def record_failure(attempt: Attempt, error: BaseException) -> None:
    """Record the exception that ended an attempt, if the store answers in time; never raises.

    Args:
        attempt: Of this process.
        error: The uncaught exception.
    """
    if isinstance(error, SupersededError):
        return  # The ledger belongs to the newer attempt, and already shows that.
    summary = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_ERROR_LENGTH]
    problems = ["it does not answer"]

    def write() -> None:
        try:
            attempt.ended(FAILED, summary)
            problems.clear()
        except Exception as problem:
            problems[:] = [str(problem)]

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(_RECORD_TIMEOUT_SECONDS)
    if problems:
        warnings.warn(
            f"Could not record in the ledger why this attempt has failed ({problems[0]}). Nothing "
            "else is lost.",
            stacklevel=2,
        )


def _describe(entry: Entry, reported: str) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(entry.began))
    lasted = format_duration(max(entry.updated - entry.began, 0.0))
    if entry.end == PREEMPTED:
        end = "was asked to stop"
    elif reported or entry.error:
        end = f"ended: {reported or entry.error}"
    else:
        end = "ended without a record: it was killed, or its machine was lost"
    return f" (pid {entry.pid} on {entry.host}, {began}, last update after {lasted}) {end}"
