"""Measures the cost of a save: the time the step loop waits, and the slowdown during the write.

The step loop waits only for the copy of the state, but the thread that writes the copy competes for
the cores. So steps during a write are compared with steps without one.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_WINDOW = 64


class SaveCost:
    """Measures the steps and the saves of one `fit`."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=_WINDOW)
        self._steps_while_writing: deque[float] = deque(maxlen=_WINDOW)
        self._writing_steps: deque[int] = deque(maxlen=_WINDOW)
        self._waits: deque[float] = deque(maxlen=_WINDOW)
        self._last: float | None = None
        self._was_writing = False

    def step(self, writing: bool) -> None:
        """Record the step that has just ended.

        Args:
            writing: Whether a checkpoint is being written now.
        """
        now = time.monotonic()
        if self._last is not None:
            if self._was_writing:
                self._steps_while_writing.append(now - self._last)
                if self._writing_steps:
                    self._writing_steps[-1] += 1
            else:
                self._steps.append(now - self._last)
        self._last = now
        self._was_writing = writing

    def skip_next_step(self) -> None:
        """Ignore the time until the end of the next step."""
        self._last = None

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure the time that the step loop waits for a save."""
        began = time.monotonic()
        yield
        wait_seconds = time.monotonic() - began
        self._waits.append(wait_seconds)
        self._writing_steps.append(0)
        if self._last is not None:
            self._last += wait_seconds

    @property
    def last_wait(self) -> float:
        """Seconds that the step loop waited for the last save; 0 before the first."""
        return self._waits[-1] if self._waits else 0.0

    @property
    def step_time(self) -> float:
        """Median seconds of a step, during writes or not; 0 before the second step."""
        steps = [*self._steps, *self._steps_while_writing]
        return statistics.median(steps) if steps else 0.0

    @property
    def save_cost(self) -> float:
        """Seconds of training time that a save costs; 0 before the first save."""
        if not self._waits:
            return 0.0
        cost = statistics.median(self._waits)
        if self._steps and self._steps_while_writing:
            slowdown = statistics.median(self._steps_while_writing) - statistics.median(self._steps)
            cost += max(slowdown, 0.0) * statistics.mean(self._writing_steps)
        return cost
