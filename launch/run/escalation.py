"""Signals to the ranks of an attempt, each stronger than the one before, until all have ended.

No wait is unlimited. A rank that was asked to stop gets the grace period for saving. A rank whose
peer has failed gets some seconds to notice and to end by itself; then it gets SIGTERM, and then
SIGKILL. Ranks that hang get SIGABRT, on which Python prints all stacks, and then SIGKILL.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping

from distrib.errors import EXIT_FINISHED, EXIT_PREEMPTED

from ..hosts.names import rank_numbers
from .failure import RankExit
from .rank_process import RankProcess

NOTICE_SECONDS = 10.0  # For the other ranks to notice by themselves that one has failed.
ESCALATION_SECONDS = 5.0  # From one signal to the next stronger one.
ABANDON = 0  # Not a signal: give up the connection to a rank that even SIGKILL does not end.


class Escalation:
    """What is sent to the ranks that still run, and when.

    Args:
        running: The ranks that have not ended, by number; kept up to date by the caller.
        grace: Seconds that a rank has for saving after a request to stop.
        log: Shows a message.
        begin: Called before the first signal that ends ranks.

    Attributes:
        grace: See above.
        has_begun: Whether ranks were sent a signal that ends them.
    """

    def __init__(
        self,
        running: Mapping[int, RankProcess],
        grace: float,
        log: Callable[[str], None],
        begin: Callable[[], None],
    ) -> None:
        self._running = running
        self.grace = grace
        self._log = log
        self._begin = begin
        self._schedule: list[tuple[float, int]] = []
        self.has_begun = False

    @property
    def is_planned(self) -> bool:
        """Whether the attempt is ending already."""
        return self.has_begun or bool(self._schedule)

    def after_request(self) -> None:
        """Plan for ranks that were asked to save and stop."""
        self._plan(self.grace, signal.SIGKILL)

    def after_exit(self, rank_exit: RankExit) -> None:
        """Plan for the ranks that are left by one that has ended."""
        if self.has_begun or rank_exit.code == EXIT_FINISHED:
            return
        if rank_exit.code == EXIT_PREEMPTED:  # The chief may still be saving.
            self.after_request()
        else:
            self._plan(NOTICE_SECONDS, signal.SIGTERM)
            self._plan(NOTICE_SECONDS + ESCALATION_SECONDS, signal.SIGKILL)

    def end_now(self, number: int) -> None:
        """Send a signal at once, and SIGKILL to what it does not end."""
        self._send(number)
        if number != signal.SIGKILL:
            self._plan(ESCALATION_SECONDS, signal.SIGKILL)

    def send_due(self) -> None:
        """Send what is due by now."""
        for item in sorted(self._schedule):
            if item[0] <= time.monotonic():
                self._schedule.remove(item)
                self._send(item[1])

    def _plan(self, delay: float, number: int) -> None:
        """Schedule a signal, unless the same one is scheduled for an earlier time."""
        when = time.monotonic() + delay
        if all(scheduled != number or other > when for other, scheduled in self._schedule):
            self._schedule.append((when, number))

    def _send(self, number: int) -> None:
        """Send a signal to the ranks that still run, or abandon them."""
        if not self._running:
            return
        if not self.has_begun:
            self._begin()
        self.has_begun = True
        names = rank_numbers(self._running)
        if number == ABANDON:
            self._log(f"giving up the connection to {names}")
        else:
            name, have = signal.Signals(number).name, "has" if len(self._running) == 1 else "have"
            self._log(f"{name} to {names}, which {have} not ended")
        for rank in self._running.values():
            if number == ABANDON:
                rank.abandon()
            else:
                rank.signal(number)
        if number == signal.SIGKILL:
            self._plan(ESCALATION_SECONDS, ABANDON)
