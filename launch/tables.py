"""Tables of the command's output, and times in them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from distrib.units import format_duration


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below headers, every column as wide as its widest cell.

    Args:
        headers: One for each column; a leading `>` aligns the column right.
        rows: Cells, one for each column.

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


def age(timestamp: float) -> str:
    """Return how long ago a Unix time was, such as `10.2 h`."""
    return format_duration(max(round(time.time() - timestamp), 0))


def date(timestamp: float) -> str:
    """Return a Unix time as date and time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(timestamp))
