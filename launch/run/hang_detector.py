"""What the ranks' heartbeats tell: how far the job has come, whether it hangs, who is slow.

Ranks that train together wait for each other, so a rank that is stuck stops all of them. While one
rank makes progress (such as the chief, which uploads a large checkpoint to a slow store), the
others have a reason to wait. So a job hangs when no rank has sent a heartbeat for too long, and the
stacks show which rank is to blame. Outside of `fit` ranks send no heartbeats, so a script may take
any time there, unless it waits in a collective, which ranks report too: `deadlock.py` looks at
those.

A slow rank is the one that does not wait for the others.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from statistics import median_high
from typing import Any

from distrib.heartbeat import OUTSIDE, STARTING, TRAINING

from ..hosts.names import rank_names
from ..hosts.placement import RankPlacement

START_SECONDS = 1800.0
STEP_SECONDS = 600.0
WINDOW_SECONDS = 30.0
SLOW_SHARE = 0.2  # A slow rank's share of time spent waiting is this much below the median.


@dataclass(frozen=True)
class HangTimeouts:
    """How long a job may send no heartbeat, in seconds; 0 for no limit.

    Attributes:
        start: From the start of the job to `fit`, and from there to the first batch. `None` for no
            limit before `fit`, where a script may take any time, and then `START_SECONDS`.
        step: From one heartbeat to the next, while the job trains.
    """

    start: float | None = None
    step: float = STEP_SECONDS


@dataclass(frozen=True)
class RankHeartbeat:
    """The last heartbeat of a rank: when it arrived, and its content."""

    received: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far an attempt came, in steps since the run began; the sum if it has several `fit`s.

    Attributes:
        resumed: Step at which the attempt began.
        committed: Step of its last checkpoint.
        trained: Whether any rank has trained a batch.
    """

    resumed: int = 0
    committed: int = 0
    trained: bool = False


class HangDetector:
    """Follows the heartbeats of one attempt.

    Args:
        timeouts: After which the job hangs.
        earlier: The `runs` of the attempt before. A script may skip a `fit` that has finished, and
            its steps count nevertheless. Defaults to none.

    Attributes:
        runs: How far each `fit` came, by directory.
        last_heartbeats: By rank.
        progress: As far as heartbeats have reported it.
    """

    def __init__(
        self, timeouts: HangTimeouts, earlier: Mapping[str, Progress] | None = None
    ) -> None:
        self._timeouts = timeouts
        self.runs = {
            directory: Progress(run.committed, run.committed)
            for directory, run in (earlier or {}).items()
        }
        self.last_heartbeats: dict[int, RankHeartbeat] = {}
        self.progress = Progress()
        self._began = time.monotonic()
        self._window: dict[int, RankHeartbeat] = {}
        self._slow: set[int] = set()

    def record(self, rank: int, facts: Mapping[str, Any]) -> None:
        """Record a heartbeat."""
        self.last_heartbeats[rank] = RankHeartbeat(time.monotonic(), facts)
        trained = self.progress.trained or facts["phase"] == TRAINING
        self.progress = replace(self.progress, trained=trained)
        if "committed" in facts:  # Only the chief reports it.
            self.runs[facts["run"]] = Progress(facts["resumed"], facts["committed"])
            runs = self.runs.values()
            self.progress = Progress(
                sum(run.resumed for run in runs), sum(run.committed for run in runs), trained
            )

    @property
    def step(self) -> int | None:
        """The highest step that a rank has reported in this attempt."""
        facts = [heartbeat.facts for heartbeat in self.last_heartbeats.values()]
        return max((each["step"] for each in facts if "step" in each), default=None)

    def step_of(self, rank: int) -> int | None:
        """The step that a rank reported last, or at which it resumed."""
        heartbeat = self.last_heartbeats.get(rank)
        return None if heartbeat is None else heartbeat.facts.get("step")

    def find_hang(self, running: Collection[RankPlacement]) -> str | None:
        """Return a message if the job hangs.

        Args:
            running: The ranks that have not ended.
        """
        heartbeats = [
            self.last_heartbeats[placement.rank]
            for placement in running
            if placement.rank in self.last_heartbeats
        ]
        last = max((heartbeat.received for heartbeat in heartbeats), default=self._began)
        phases = {_phase(heartbeat.facts) for heartbeat in heartbeats}
        timeout, option = self._timeouts.step, "--step-timeout"
        if phases <= {STARTING}:
            default = START_SECONDS if phases else 0.0
            timeout = default if self._timeouts.start is None else self._timeouts.start
            option = "--start-timeout"
        if OUTSIDE in phases or not running or not timeout or time.monotonic() - last < timeout:
            return None
        where = "" if self.step is None else f" (last step {self.step})"
        return (
            f"the job hangs: no rank has made progress for {timeout:g} s{where}. The stacks of all "
            f"ranks follow. If the job is only slow, raise {option}"
        )

    def find_stragglers(self, running: Collection[RankPlacement]) -> str | None:
        """Return a message if ranks have become slow that were not slow before.

        Args:
            running: The ranks that have not ended.
        """
        last = {placement.rank: self.last_heartbeats.get(placement.rank) for placement in running}
        now = {
            rank: heartbeat
            for rank, heartbeat in last.items()
            if heartbeat and "wait_seconds" in heartbeat.facts
        }
        if len(now) < len(last) or now.keys() != self._window.keys():
            self._window = now
            return None
        spans = {rank: now[rank].received - self._window[rank].received for rank in now}
        if len(now) < 2 or min(spans.values()) < WINDOW_SECONDS:
            return None
        waits = {
            rank: now[rank].facts["wait_seconds"] - self._window[rank].facts["wait_seconds"]
            for rank in now
        }
        shares = {rank: wait / spans[rank] for rank, wait in waits.items()}
        self._window = now
        typical = median_high(shares.values())
        slow = {rank for rank, share in shares.items() if share < typical - SLOW_SHARE}
        new, self._slow = slow - self._slow, slow
        if not new:
            return None
        names = rank_names(placement for placement in running if placement.rank in slow)
        return f"slow: {names}; the other ranks wait {typical:.0%} of the time"


def _phase(facts: Mapping[str, Any]) -> str:
    """Return a rank's phase. In a collective it waits for the others, as it does in training."""
    is_waiting = facts["phase"] == OUTSIDE and facts.get("collective")
    return TRAINING if is_waiting else str(facts["phase"])
