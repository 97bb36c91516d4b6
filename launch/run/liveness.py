"""What ranks' signs of life tell: how far the job has come, whether it hangs, and who is slow.

Ranks that train together wait for each other, so one that is stuck stops all of them. As long as
one of them gets on (the chief that sends a large checkpoint to a slow store), the others have
reason to wait. So it is a hang when no rank has shown a sign of life for too long, and who is
to blame is seen from the stacks. Outside of `fit` nobody gives signs, and nothing is missed.

A slow rank is the one that does not wait for the others.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median_high
from typing import Any

from distrib.heartbeat import OUTSIDE, STARTING

from ..hosts.placement import Slot

START_SECONDS = 1800.0
STEP_SECONDS = 600.0
WINDOW_SECONDS = 30.0
SLOW = 0.2  # Of the time, what others wait more.


@dataclass(frozen=True)
class Limits:
    """How long a job may be silent, in seconds; 0 is for ever.

    Attributes:
        start: From its start to `fit`, and from there to the first batch. `None` is for ever and
            `START_SECONDS`: what a script does before `fit` may take its time.
        step: From one sign of life to the next, when it trains.
    """

    start: float | None = None
    step: float = STEP_SECONDS


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a rank: when it came, and what it said."""

    when: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far an attempt came, in steps since the run began.

    Attributes:
        resumed: Where it began.
        committed: Step of its last checkpoint.
    """

    resumed: int = 0
    committed: int = 0


class Watch:
    """Follows the ranks of one attempt.

    Args:
        limits: Of silence.

    Attributes:
        signs: The last one of each rank.
        progress: What is known of it.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.signs: dict[int, Sign] = {}
        self.progress = Progress()
        self._began = time.monotonic()
        self._window: dict[int, Sign] = {}
        self._slow: set[int] = set()

    def hear(self, rank: int, facts: Mapping[str, Any]) -> None:
        """Take a sign of life."""
        self.signs[rank] = Sign(time.monotonic(), facts)
        if "committed" in facts:  # The chief's alone.
            self.progress = Progress(facts["resumed"], facts["committed"])

    @property
    def step(self) -> int | None:
        """Number of the last step that some rank has told of in this attempt."""
        steps = [sign.facts["step"] for sign in self.signs.values() if "step" in sign.facts]
        return max(steps, default=None)

    def hang(self, running: Collection[Slot]) -> str | None:
        """Return what is wrong if the job hangs.

        Args:
            running: Places of the ranks that have not ended.
        """
        signs = {slot: self.signs[slot.rank] for slot in running if slot.rank in self.signs}
        last = max((sign.when for sign in signs.values()), default=self._began)
        phases = {sign.facts["phase"] for sign in signs.values()}
        limit, option = self._limits.step, "--step-timeout"
        if phases <= {STARTING}:
            default = START_SECONDS if phases else 0.0
            limit = default if self._limits.start is None else self._limits.start
            option = "--start-timeout"
        if OUTSIDE in phases or not running or not limit or time.monotonic() - last < limit:
            return None
        where = "" if self.step is None else f" (last step {self.step})"
        return (
            f"the job hangs: no rank has got on for {limit:g} s{where}. The stacks of all ranks "
            f"follow. If nothing is wrong with them, allow for more by {option}"
        )

    def stragglers(self, running: Collection[Slot]) -> str | None:
        """Return who makes the others wait, when that has changed.

        Args:
            running: Places of the ranks that have not ended.
        """
        told = {slot.rank: self.signs.get(slot.rank) for slot in running}
        now = {rank: sign for rank, sign in told.items() if sign and "wait_seconds" in sign.facts}
        if len(now) < len(told) or now.keys() != self._window.keys():
            self._window = now
            return None
        spans = {rank: sign.when - self._window[rank].when for rank, sign in now.items()}
        if len(now) < 2 or min(spans.values()) < WINDOW_SECONDS:
            return None
        shares = {
            rank: (sign.facts["wait_seconds"] - self._window[rank].facts["wait_seconds"])
            / spans[rank]
            for rank, sign in now.items()
        }
        self._window = now
        typical = median_high(shares.values())
        slow = {rank for rank, share in shares.items() if share < typical - SLOW}
        news, self._slow = slow - self._slow, slow
        if not news:
            return None
        names = ", ".join(f"rank {s.rank} on {s.hostname}" for s in running if s.rank in slow)
        return f"slow: {names}; the other ranks wait {typical:.0%} of the time"
