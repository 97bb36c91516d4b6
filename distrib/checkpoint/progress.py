"""Whether a run still gets on: what its ledger says of attempts that gained nothing, and why.

A supervisor that lives on counts such attempts itself. But Kubernetes or Slurm may start a whole
job again, its supervisor included, and for ever, since an exit code that means "run me again" is no
failure to them. Then only the ledger remembers. So before an attempt begins, the chief looks: if as
many attempts as may be have begun where this one would, and none came further, it gives up.

That must not lock out a person who has mended the cause and runs the same command again. So giving
up is an entry in the ledger too, and the next attempt counts from there.
"""

from __future__ import annotations

import threading
import time
import warnings

from distrib.checkpoint import attempts
from distrib.checkpoint.attempts import FAILED, PREEMPTED, Attempt, Entry
from distrib.checkpoint.transfer import each
from distrib.environment import Supervision
from distrib.errors import EXIT_NO_PROGRESS, SupersededError
from distrib.storage.location import Location
from distrib.units import format_duration

_MOST_OF_AN_ERROR = 500
# A process that has failed should end; what it fails with may be that the store does not answer.
_SECONDS_FOR_A_NOTE = 5.0


def reason_to_give_up(checkpoints: Location, start: int, supervisor: Supervision) -> str | None:
    """Return why another attempt would gain nothing either; `None` if it should be made.

    Args:
        checkpoints: The folder of the run's checkpoints.
        start: Step that the attempt would begin with.
        supervisor: What the job's supervisor says. If it allows any number of attempts, the ledger
            is not even read.
    """
    if not supervisor.attempts:
        return None
    newest = attempts.newest(checkpoints)
    stalled = newest.stalled_if_next_at(start) if newest is not None else 0
    if newest is None or stalled < supervisor.attempts:
        return None
    numbers = range(newest.attempt - supervisor.attempts + 1, newest.attempt + 1)
    entries = each(lambda number: attempts.read(checkpoints, number), list(numbers), len(numbers))
    told = [entry.before if entry is not None else "" for entry in entries[1:]]
    lines = [
        f"  attempt {number}{_describe(entry, before) if entry is not None else ''}"
        for number, entry, before in zip(
            numbers, entries, [*told, supervisor.last_end], strict=True
        )
    ]
    return "\n".join(
        [
            f"given up: {stalled} attempts in a row have gained no step beyond {start}, that of "
            f"the checkpoint which they began with in {checkpoints}:",
            *lines,
            "Mend the cause and run the same command again: it will go on from there, with "
            f"{supervisor.attempts} attempts. (exit code {EXIT_NO_PROGRESS})",
        ]
    )


def note_failure(attempt: Attempt, error: BaseException) -> None:
    """Write down which exception has ended an attempt, if its store answers soon; never raises.

    Args:
        attempt: This process's.
        error: Nobody has caught it.
    """
    if isinstance(error, SupersededError):
        return  # The ledger says that already, and is another attempt's now.
    summary = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_OF_AN_ERROR]
    failure = ["it does not answer"]

    def write() -> None:
        try:
            attempt.ended(FAILED, summary)
            failure.clear()
        except Exception as problem:
            failure[:] = [str(problem)]

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(_SECONDS_FOR_A_NOTE)
    if failure:
        warnings.warn(
            f"Could not note in the ledger why this attempt has failed ({failure[0]}). Nothing "
            "else is lost.",
            stacklevel=2,
        )


def _describe(entry: Entry, told: str) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(entry.began))
    lasted = format_duration(max(entry.updated - entry.began, 0.0))
    if entry.end == PREEMPTED:
        end = "was asked to stop"
    elif told or entry.error:
        end = f"ended: {told or entry.error}"
    else:
        end = "ended without a word: killed, or its machine was lost"
    return f" (pid {entry.pid} on {entry.host}, {began}, last heard of after {lasted}) {end}"
