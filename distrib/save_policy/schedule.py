"""When a checkpoint is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from distrib.log import log
from distrib.save_policy.interval import MAX_OVERHEAD, Observed, choose_interval


@dataclass(frozen=True)
class SaveSchedule:
    """When a checkpoint is due, besides the first one and the last one.

    Attributes:
        epochs: Whether to save at the end of every epoch.
        steps: Train steps between saves; `None` for no such saves.
        seconds: Time between saves; `None` for no such saves.
        auto: Whether to choose the interval from the cost of a save and the failures of the run.
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
    """Says when the next checkpoint of a run is due.

    Args:
        schedule: Of the run.
        observe: Returns the run's costs and failures, for `SaveSchedule.auto`.
    """

    def __init__(self, schedule: SaveSchedule, observe: Callable[[], Observed]) -> None:
        self._schedule = schedule
        self._observe = observe
        self._last_step = -1
        self._last_time = time.monotonic()
        self._epoch_ended = False
        self._interval = 0.0

    def epoch_ended(self) -> None:
        """Record the end of an epoch."""
        self._epoch_ended = self._schedule.epochs

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step."""
        every = self._schedule.steps
        if every and step // every > self._last_step // every:
            return True
        elapsed = time.monotonic() - self._last_time
        if self._schedule.seconds is not None and elapsed >= self._schedule.seconds:
            return True
        # The cost of a save and the MTBF may have changed since the interval was chosen.
        if self._schedule.auto and elapsed >= self._interval and elapsed >= self._choose_interval():
            return True
        return self._epoch_ended

    def record_save(self, step: int) -> None:
        """Record that the checkpoint of a step was saved or skipped."""
        self._last_step = step
        self._last_time = time.monotonic()
        self._epoch_ended = False

    def _choose_interval(self) -> float:
        """Choose the seconds between saves; logs the choice when it changes by half or more."""
        chosen = choose_interval(self._observe(), MAX_OVERHEAD)
        if not self._interval / 1.5 < chosen.seconds < self._interval * 1.5:
            log.info(f"saving {chosen.reason}.")
        self._interval = chosen.seconds
        return self._interval
