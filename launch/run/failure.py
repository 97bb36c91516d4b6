"""What a job ends with: the cause, not the symptoms.

When one rank fails, the others fail too, each in its own way and perhaps sooner. A supervisor needs
the one number that says what to do, and a person the one rank where to look.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distrib.errors import EXIT_FINISHED, EXIT_LOST_PEER, EXIT_PREEMPTED, NON_RETRYABLE

from ..hosts.channel import LOST

ABORTED = 128 + signal.SIGABRT  # Horovod's end when a peer is missing at its start.


@dataclass(frozen=True)
class End:
    """How a rank ended.

    Attributes:
        rank: Which one.
        host: Where it ran.
        code: Its exit code; 128 plus the number for a signal, `LOST` for a lost connection.
        by_launcher: Whether the launcher ended it.
    """

    rank: int
    host: str
    code: int
    by_launcher: bool = False

    @property
    def is_kill(self) -> bool:
        """Whether a signal ended it, or the loss of its host."""
        return self.code == LOST or 128 < self.code <= 128 + signal.SIGRTMAX

    @property
    def weight(self) -> int:
        """How well it explains the other ranks' ends: the less, the better."""
        if self.code in NON_RETRYABLE:
            return 0
        if self.code == EXIT_PREEMPTED:
            return 2
        if self.by_launcher or self.code in (EXIT_LOST_PEER, ABORTED):
            return 3
        return 1

    @property
    def is_conclusive(self) -> bool:
        """Whether it is a cause by itself, and no rank's answer to another's end."""
        return self.weight <= 1

    @property
    def exit_code(self) -> int:
        """What the job ends with when this is the cause."""
        return EXIT_LOST_PEER if self.is_kill else self.code

    def __str__(self) -> str:
        where = f"rank {self.rank} on {self.host}"
        if self.code == LOST:
            return f"the connection to {where} was lost"
        if self.is_kill:
            number = self.code - 128
            name = signal.Signals(number).name if number in _SIGNALS else f"signal {number}"
            return f"{where} was killed by {name}"
        return f"{where} ended with exit code {self.code}"


_SIGNALS = {int(number) for number in signal.Signals}


def cause(ends: Iterable[End], complaints: Sequence[int] = ()) -> End | None:
    """Return the end that explains the others, `None` if all ranks finished.

    Of several ranks that ended with an error of their own, it is the one that complained first:
    to end may take longer than to make others end. A kill gives no notice.

    Args:
        ends: In the order in which they came.
        complaints: Ranks that have written an error, in the order in which they did.
    """
    failed = [end for end in ends if end.code != EXIT_FINISHED]
    weight = min((end.weight for end in failed), default=0)
    best = [end for end in failed if end.weight == weight]
    if not best or best[0].is_kill:
        return best[0] if best else None
    return min(best, key=lambda end: _position(end.rank, complaints))


def is_known(end: End | None, ends: Iterable[End], complaints: Sequence[int]) -> bool:
    """Return whether `cause()` would not change its answer if it knew how other ranks will end."""
    if end is None or not end.is_conclusive:
        return False
    ended = {other.rank for other in ends}
    earlier = complaints[: _position(end.rank, complaints)]
    return end.is_kill or ended.issuperset(earlier)


def _position(rank: int, complaints: Sequence[int]) -> int:
    return complaints.index(rank) if rank in complaints else len(complaints)


def advice(end: End) -> str:
    """Return what happened and what to do about it, as one line."""
    code = end.exit_code
    if code == EXIT_PREEMPTED:
        what = "stopped as it was asked to. Run the same command again: it goes on from there"
    elif code == EXIT_LOST_PEER:
        what = f"{end}. Run the same command again: it goes on from the last checkpoint"
    else:
        what = f"{end}, whose own output says why"
    return f"{what}. (exit code {code})"
