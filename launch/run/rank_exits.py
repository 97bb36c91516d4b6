"""The exits of an attempt's ranks so far, and the one that explains the others.

`failure.py` judges by exit codes and by the order of the errors; this module knows their text. In a
script without distrib, a rank that has lost a peer ends with 1, as after any exception. And a rank
that has written an error of its own, and was still ending when the launcher ended it, has ended by
that error.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterable
from dataclasses import replace

from distrib.errors import EXIT_FINISHED, EXIT_PREEMPTED

from ..hosts.placement import RankPlacement
from .error_text import ErrorText, find_error
from .failure import RankExit, early_finish, is_final, root_cause
from .output import Display
from .transient import may_pass

EXIT_EXCEPTION = 1  # Of a Python script that an exception ends.
# Of what Horovod raises on the ranks that are left.
_LOST_PEER = re.compile("Horovod has been shut down|HorovodInternalError")
# A Python exception, neither an error of C++ nor one that Python's crash is reported by.
_EXCEPTION = re.compile(r"(?!Fatal Python error)[\w.]+(?:: |$)")
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
            rank for rank in self._display.failed_ranks if self._failed_by_itself(rank)
        }

    def add(self, placement: RankPlacement, code: int, by_launcher: bool) -> RankExit:
        """Take the exit code of a rank that has ended, and return how it counts."""
        rank = placement.rank
        if by_launcher and rank in self._on_their_way_out:
            code, by_launcher = EXIT_EXCEPTION if code in _ENDED_BY_LAUNCHER else code, False
        rank_exit = RankExit(rank, placement.hostname, code, by_launcher)
        if rank_exit.is_own and any(map(_LOST_PEER.search, self._error(rank).chain)):
            rank_exit = replace(rank_exit, lost_peer=True)
        self._exits[rank] = rank_exit
        if code == EXIT_FINISHED:
            self.finished.append(placement)
        elif code != EXIT_PREEMPTED:
            self.first_failure = min(self.first_failure, time.monotonic())
        return rank_exit

    def cause(self) -> RankExit | None:
        """Return the exit that explains the others so far; `None` if no rank has failed."""
        return root_cause(self._exits.values(), self._display.failed_ranks)

    def is_final(self, cause: RankExit) -> bool:
        """Return whether `cause` stays the cause, however the running ranks end."""
        return is_final(cause, self._exits.values(), self._display.failed_ranks)

    def early_finish(self, cause: RankExit) -> RankExit | None:
        """Return the rank that finished while the rank of `cause` still needed it."""
        early = early_finish(cause, self._exits.values())
        if self._error(cause.rank).line and not cause.is_kill:
            return None  # For example its store was unavailable.
        return early

    def _failed_by_itself(self, rank: int) -> bool:
        error = self._error(rank)
        return bool(_EXCEPTION.match(error.line)) and not may_pass(error.chain)

    def _error(self, rank: int) -> ErrorText:
        return find_error(self._display.errors_of(rank))
