"""A file whose age tells a liveness probe whether the launcher is running."""

from __future__ import annotations

import time
from pathlib import Path

INTERVAL_SECONDS = 1.0


class LivenessFile:
    """The file.

    Args:
        path: Where it is; `None` for no file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._next = 0.0

    def touch(self) -> None:
        """Touch the file, at most once a second."""
        now = time.monotonic()
        if self._path is not None and now >= self._next:
            self._path.touch()
            self._next = now + INTERVAL_SECONDS
