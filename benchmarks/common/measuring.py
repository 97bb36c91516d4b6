"""Timing, medians, and the command that starts ranks."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

LAUNCHER = Path(sysconfig.get_path("scripts")) / "distrib"


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def column_medians(rows: Iterable[Sequence[float]]) -> list[float]:
    """Return the median of each column of equally long rows."""
    return [median(column) for column in zip(*rows, strict=True)]
