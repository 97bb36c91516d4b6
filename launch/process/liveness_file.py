"""A file that says by its age whether the launcher is well, for a liveness probe."""

from __future__ import annotations

import time
from pathlib import Path

INTERVAL_SECONDS = 1.0


class Alive:
    """The file.

    Args:
        path: Where it is; `None` for nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._next = 0.0

    def tick(self) -> None:
        """Touch it, if the last time was a while ago."""
        now = time.monotonic()
        if self._path is not None and now >= self._next:
            self._path.touch()
            self._next = now + INTERVAL_SECONDS
