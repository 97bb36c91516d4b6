"""The log, signals and liveness file of a launcher process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from distrib.errors import Preempted

from .liveness_file import INTERVAL_SECONDS, LivenessFile
from .signals import Signals


@dataclass(frozen=True)
class LauncherContext:
    """How one launcher talks to its user and to its supervisor.

    Attributes:
        log: Shows the user a message.
        liveness_file: Shows a liveness probe that the launcher is running.
        signals: Signals that the launcher has received.
    """

    log: Callable[[str], None]
    liveness_file: LivenessFile
    signals: Signals

    def wait(self, seconds: float) -> bool:
        """Wait, until a stop is requested at the latest; return whether it was.

        The liveness file is touched meanwhile.
        """
        end = time.monotonic() + seconds
        while True:
            self.liveness_file.touch()
            left = end - time.monotonic()
            if self.signals.wait(min(left, INTERVAL_SECONDS)) or left <= INTERVAL_SECONDS:
                return self.signals.stop_requested

    def pause(self, seconds: float) -> None:
        """Wait while no rank is running.

        Raises:
            Preempted: If a stop is requested. As no rank is running, nothing has to be saved.
        """
        if self.wait(seconds):
            raise Preempted
