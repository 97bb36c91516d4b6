"""When a checkpoint is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from distrib.log import log
from distrib.save_policy.interval import MAX_OVERHEAD, Observed, choose


@dataclass(frozen=True)
class SaveSchedule:
    """When a checkpoint is due, besides the first one and the last.

    Attributes:
        epochs: At the end of every epoch.
        steps: Every so many train steps; `None` for never.
        seconds: When so much time has passed since the last one; `None` for never.
        auto: In intervals that follow from what a save costs and how often the run has failed.
    """

    epochs: bool = False
    steps: int | None = None
    seconds: float | None = None
    auto: bool = False

    @property
    def within_epochs(self) -> bool:
        """Whether a checkpoint may be due in the middle of an epoch."""
        return self.steps is not None or self.seconds is not None or self.auto


class SaveTimer:
    """Follows a run, and tells when its next checkpoint is due.

    Args:
        schedule: What was asked for.
        observe: Returns what the run has been through, for intervals that follow from that.
    """

    def __init__(self, schedule: SaveSchedule, observe: Callable[[], Observed]) -> None:
        self._schedule = schedule
        self._observe = observe
        self._last_step = -1
        self._last_time = time.monotonic()
        self._epoch_ended = False
        self._interval = 0.0

    def epoch_ended(self) -> None:
        """Take note of the end of an epoch."""
        self._epoch_ended = self._schedule.epochs

    def at(self, step: int) -> bool:
        """Tell whether one is due after a step."""
        every = self._schedule.steps
        if every and step // every > self._last_step // every:
            return True
        passed = time.monotonic() - self._last_time
        if self._schedule.seconds is not None and passed >= self._schedule.seconds:
            return True
        # What is known of saves and failures may have changed since the interval was chosen.
        if self._schedule.auto and passed >= self._interval and passed >= self._choose_interval():
            return True
        return self._epoch_ended

    def was(self, step: int) -> None:
        """Take note that the one of a step is made, or skipped."""
        self._last_step = step
        self._last_time = time.monotonic()
        self._epoch_ended = False

    def _choose_interval(self) -> float:
        """Seconds between saves, by what the run has been through; said when it changes by much."""
        chosen = choose(self._observe(), MAX_OVERHEAD)
        if not self._interval / 1.5 < chosen.seconds < self._interval * 1.5:
            log.info(f"saving {chosen.reason}.")
        self._interval = chosen.seconds
        return self._interval
