"""How a launcher speaks, hears and shows that it is well."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from distrib.errors import Preempted

from .liveness_file import INTERVAL_SECONDS, Alive
from .signals import Signals


@dataclass(frozen=True)
class Console:
    """Of one launcher.

    Attributes:
        say: Tells the user a line.
        alive: What says that all is well.
        signals: What the launcher is asked to do.
    """

    say: Callable[[str], None]
    alive: Alive
    signals: Signals

    def wait(self, seconds: float) -> bool:
        """Wait, and show life; return whether the launcher was asked to stop, and then soon."""
        end = time.monotonic() + seconds
        while True:
            self.alive.tick()
            left = end - time.monotonic()
            if self.signals.wait(min(left, INTERVAL_SECONDS)) or left <= INTERVAL_SECONDS:
                return self.signals.asked_to_stop

    def pause(self, seconds: float) -> None:
        """Wait, unless asked to stop.

        Raises:
            Preempted: If so. Nothing runs, so nothing has to be saved.
        """
        if self.wait(seconds):
            raise Preempted
