"""The exits of an attempt's ranks so far, and the one that explains the others.

`failure.py` judges by exit codes and by the order of the errors. This module knows what the ranks
have written: an error that no other rank's end explains comes before those that one may explain,
such as Horovod's after the loss of a peer, even if both are read in the same moment. And a rank
that was on its way out with such an error, when the launcher ended it, ended by that error.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable

from distrib.errors import EXIT_FINISHED, EXIT_PREEMPTED

from ..hosts.placement import RankPlacement
from .error_text import find_error
from .failure import RankExit, early_finish, is_final, root_cause
from .output import MAX_SHOWN_RANKS, Display
from .transient import may_pass

EXIT_EXCEPTION = 1  # Of a Python script that an exception ends.
_ENDED_BY_LAUNCHER = {128 + signal.SIGTERM, 128 + signal.SIGKILL}


class RankExits:
    """Collects the exits of one attempt.

    Args:
        display: Keeps what the ranks have written.

    Attributes:
        finished: Where the ranks ran that have finished.
        first_failure: When the first rank failed, by `time.monotonic`.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._exits: dict[int, RankExit] = {}
        self._on_their_way_out: set[int] = set()
        self.finished: list[RankPlacement] = []
        self.first_failure = float("inf")

    @property
    def ranks(self) -> Iterable[int]:
        """The ranks that have ended."""
        return self._exits.keys()

    def note_errors(self) -> None:
        """Remember which ranks have failed by themselves; to be called before any is ended."""
        self._on_their_way_out = {
            rank for rank in self._failed_ranks() if not self._may_be_symptom(rank)
        }

    def add(self, placement: RankPlacement, code: int, by_launcher: bool) -> RankExit:
        """Take the exit code of a rank that has ended, and return how it counts."""
        rank = placement.rank
        if by_launcher and code in _ENDED_BY_LAUNCHER and rank in self._on_their_way_out:
            code, by_launcher = EXIT_EXCEPTION, False
        rank_exit = RankExit(rank, placement.hostname, code, by_launcher)
        self._exits[rank] = rank_exit
        if code == EXIT_FINISHED:
            self.finished.append(placement)
        elif code != EXIT_PREEMPTED:
            self.first_failure = min(self.first_failure, time.monotonic())
        return rank_exit

    def cause(self) -> RankExit | None:
        """Return the exit that explains the others so far; `None` if no rank has failed."""
        return root_cause(self._exits.values(), self._failed_ranks())

    def is_final(self, cause: RankExit) -> bool:
        """Return whether `cause` stays the cause, however the running ranks end."""
        return is_final(cause, self._exits.values(), self._failed_ranks())

    def early_finish(self, cause: RankExit) -> RankExit | None:
        """Return the rank that finished while the rank of `cause` still needed it."""
        early = early_finish(cause, self._exits.values())
        if find_error(self._display.errors_of(cause.rank)).line and not cause.is_kill:
            return None  # For example its store was unavailable.
        return early

    def _failed_ranks(self) -> list[int]:
        """Return the ranks that have written an error, those that caused it first.

        Only of the first ones, which alone can have caused it, the errors are looked at.
        """
        ranks = list(self._display.failed_ranks)
        return sorted(ranks[:MAX_SHOWN_RANKS], key=self._may_be_symptom) + ranks[MAX_SHOWN_RANKS:]

    def _may_be_symptom(self, rank: int) -> bool:
        error = find_error(self._display.errors_of(rank))
        return not error.line or may_pass(error.chain)
