"""What saving costs a training: the time it stops, and how much slower it goes meanwhile.

The step loop waits for the copy of the state only, but the thread that writes it takes its share of
the cores. Steps taken during a write are therefore compared with those taken without one.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_REMEMBERED = 64


class SaveCost:
    """Watches the steps of one `fit`."""

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=_REMEMBERED)
        self._writing: deque[float] = deque(maxlen=_REMEMBERED)
        self._writing_steps: deque[int] = deque(maxlen=_REMEMBERED)
        self._blocked: deque[float] = deque(maxlen=_REMEMBERED)
        self._last: float | None = None
        self._was_writing = False

    def step(self, writing: bool) -> None:
        """Count a step that has just ended.

        Args:
            writing: Whether a checkpoint is being written now.
        """
        now = time.monotonic()
        if self._last is not None:
            if self._was_writing:
                self._writing.append(now - self._last)
                if self._writing_steps:
                    self._writing_steps[-1] += 1
            else:
                self._plain.append(now - self._last)
        self._last = now
        self._was_writing = writing

    def pause(self) -> None:
        """Do not count what happens until the end of the next step."""
        self._last = None

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure the time that the step loop waits."""
        began = time.monotonic()
        yield
        waited = time.monotonic() - began
        self._blocked.append(waited)
        self._writing_steps.append(0)
        if self._last is not None:
            self._last += waited

    @property
    def last_pause(self) -> float:
        """Seconds that the step loop waited for the last save; 0 before the first."""
        return self._blocked[-1] if self._blocked else 0.0

    @property
    def step_time(self) -> float:
        """Seconds that a step takes, whether or not one is being saved; 0 before the second."""
        steps = [*self._plain, *self._writing]
        return statistics.median(steps) if steps else 0.0

    @property
    def save_cost(self) -> float:
        """Seconds that a save has kept the training from going on; 0 before the first."""
        if not self._blocked:
            return 0.0
        cost = statistics.median(self._blocked)
        if self._plain and self._writing:
            slower = statistics.median(self._writing) - statistics.median(self._plain)
            cost += max(slower, 0.0) * statistics.mean(self._writing_steps)
        return cost
