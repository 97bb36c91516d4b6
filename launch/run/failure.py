"""Why a job failed: the root cause, not the symptoms.

When one rank fails, the others fail too, each in its own way and perhaps sooner. A supervisor needs
the one exit code that says what to do, and a person needs the one rank whose output says why.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass

from distrib.errors import (
    EXIT_FINISHED,
    EXIT_LOST_PEER,
    EXIT_PREEMPTED,
    NON_RETRYABLE,
    RETRYABLE,
)

from ..hosts.channel import LOST
from ..hosts.names import rank_name

ABORTED = 128 + signal.SIGABRT  # How Horovod ends when a peer is missing at its start.
# Signals that a process causes itself. An error of another rank may have led to it: Horovod crashes
# if that rank goes on to other collectives than this one expects.
_CRASHES = {128 + n for n in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)}


@dataclass(frozen=True)
class RankExit:
    """How a rank ended.

    Attributes:
        rank: Which one.
        host: Where it ran.
        code: Its exit code; 128 plus the number for a signal, `LOST` for a lost connection.
        by_launcher: Whether the launcher ended it.
        lost_peer: Whether its error says that it has lost another rank.
    """

    rank: int
    host: str
    code: int
    by_launcher: bool = False
    lost_peer: bool = False

    @property
    def is_kill(self) -> bool:
        """Whether a signal ended the rank, or the loss of its host."""
        return self.code == LOST or 128 < self.code <= 128 + signal.SIGRTMAX

    @property
    def is_own(self) -> bool:
        """Whether the script chose the exit code, by an exception or by itself."""
        return self.code != EXIT_FINISHED and not (
            self.is_kill or self.code in (*NON_RETRYABLE, *RETRYABLE)
        )

    @property
    def priority(self) -> int:
        """How well this exit explains the other ranks' exits; 0 explains them best."""
        if self.code in NON_RETRYABLE:
            return 0
        if self.code == EXIT_PREEMPTED:
            return 2
        if self.by_launcher or self.lost_peer or self.code in (EXIT_LOST_PEER, ABORTED):
            return 3
        return 1

    @property
    def is_conclusive(self) -> bool:
        """Whether this exit is a cause by itself, not a reaction to another rank's exit."""
        return self.priority <= 1

    @property
    def exit_code(self) -> int:
        """The job's exit code if this exit is the root cause."""
        return EXIT_LOST_PEER if self.is_kill else self.code

    def __str__(self) -> str:
        rank = rank_name(self.rank, self.host)
        if self.code == LOST:
            return f"the connection to {rank} was lost"
        if self.is_kill:
            number = self.code - 128
            name = signal.Signals(number).name if number in _SIGNALS else f"signal {number}"
            return f"{rank} was killed by {name}"
        return f"{rank} ended with exit code {self.code}"


_SIGNALS = {int(number) for number in signal.Signals}


def root_cause(exits: Iterable[RankExit], failed_ranks: Iterable[int] = ()) -> RankExit | None:
    """Return the exit that explains the others, `None` if all ranks finished.

    Of several ranks that ended with an error of their own, or crashed, the cause is the one that
    wrote its error first: it may take longer to end than the ranks that lost it. A kill from
    outside writes no error.

    Args:
        exits: In the order in which the ranks ended.
        failed_ranks: Ranks that have written an error, in the order in which they did.
    """
    failures = [each for each in exits if each.code != EXIT_FINISHED]
    priority = min((each.priority for each in failures), default=0)
    candidates = [each for each in failures if each.priority == priority]
    if not candidates or _is_kill_from_outside(candidates[0]):
        return candidates[0] if candidates else None
    order = _order(failed_ranks)
    return min(candidates, key=lambda each: order.get(each.rank, len(order)))


def is_final(
    cause: RankExit | None, exits: Iterable[RankExit], failed_ranks: Iterable[int]
) -> bool:
    """Return whether `cause` stays the root cause, however the running ranks end."""
    if cause is None or not cause.is_conclusive:
        return False
    ended = {each.rank for each in exits}
    order = _order(failed_ranks)
    position = order.get(cause.rank, len(order))
    earlier = (rank for rank, other in order.items() if other < position)
    return _is_kill_from_outside(cause) or ended.issuperset(earlier)


def early_finish(cause: RankExit | None, exits: Iterable[RankExit]) -> RankExit | None:
    """Return the first rank that finished, if `cause` has lost another rank and no rank failed.

    Args:
        cause: The root cause of all exits.
        exits: In the order in which the ranks ended.
    """
    if cause is None or cause.is_conclusive or cause.code == EXIT_PREEMPTED:
        return None
    return next((each for each in exits if each.code == EXIT_FINISHED), None)


def _is_kill_from_outside(rank_exit: RankExit) -> bool:
    return rank_exit.is_kill and rank_exit.code not in _CRASHES


def _order(failed_ranks: Iterable[int]) -> dict[int, int]:
    return {rank: position for position, rank in enumerate(failed_ranks)}


def failure_report(cause: RankExit, error: str = "") -> str:
    """Return what happened and what to do about it, as one line.

    Args:
        cause: How the rank ended that caused the failure.
        error: Its last error; may be empty.
    """
    code = cause.exit_code
    if code == EXIT_PREEMPTED:
        text = "stopped as requested. Run the same command again: it resumes from there"
    elif code == EXIT_LOST_PEER:
        # What the launcher has ended may never have saved.
        saved = "the last checkpoint" + (", if there is one" if cause.by_launcher else "")
        text = f"{cause}. Run the same command again: it resumes from {saved}"
    else:
        text = f"{cause}: {error.rstrip('.')}" if error else f"{cause}; its own output says why"
    return f"{text}. (exit code {code})"
