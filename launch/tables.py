"""Tables for people, and the moments in them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from distrib.units import format_duration


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below headers, every column as wide as its widest cell.

    Args:
        headers: One a column; `>` before it sets the column flush right.
        rows: Cells.

    Example:
    >>> print_table([">step", "state"], [["7", "committed"], ["10", "late"]])
    step  state
       7  committed
      10  late
    """
    names = [header.removeprefix(">") for header in headers]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for cells in (names, *rows):
        line = [
            cell.rjust(width) if header.startswith(">") else cell.ljust(width)
            for header, cell, width in zip(headers, cells, widths, strict=True)
        ]
        print("  ".join(line).rstrip())


def age(moment: float) -> str:
    """Return how long ago a moment (seconds since 1970) was, such as `10.2 h`."""
    return format_duration(max(round(time.time() - moment), 0))


def date(moment: float) -> str:
    """Return a moment (seconds since 1970) as date and time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
