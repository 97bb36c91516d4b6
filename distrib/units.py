"""Parses and formats durations and sizes: `2h`, `1.2TB`; `10.2 h`, `12.3 MiB`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_DURATIONS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "y": 365.25 * 86400}
_SIZES = {
    **{"MB": 1e6, "GB": 1e9, "TB": 1e12},
    **{"MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40},
}
# Display name, key of `_DURATIONS`, and smallest number that is shown in it: 119 min, but 2 h.
_SHOWN_DURATIONS = (("y", "y", 1), ("d", "d", 3), ("h", "h", 2), ("min", "m", 10))
_SHOWN_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"


def format_duration(seconds: float) -> str:
    """Return a duration with three digits and the largest unit that fits.

    Example:
    >>> format_duration(212.4), format_duration(36720)
    ('212 s', '10.2 h')
    """
    for name, unit, minimum in _SHOWN_DURATIONS:
        if seconds >= minimum * _DURATIONS[unit]:
            return f"{seconds / _DURATIONS[unit]:.3g} {name}"
    return f"{seconds:.3g} s"


def format_size(size: float) -> str:
    """Return a number of bytes with a binary unit.

    Example:
    >>> format_size(512), format_size(12_897_485)
    ('512 B', '12.3 MiB')
    """
    for unit in _SHOWN_SIZES[:-1]:
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_SHOWN_SIZES[-1]}"


def parse_duration(text: str) -> float:
    """Return the seconds of a duration above 0: a number and s (the default), m, h, d or y.

    Raises:
        ValueError: If the text is not a duration.

    Example:
    >>> parse_duration("5m")
    300.0
    """
    return _parse(text, _DURATIONS, "a time above 0, such as 30s, 5m, 2h, 10d or 5y")


def parse_size(text: str) -> float:
    """Return the bytes of a size above 0: a number and one of MB, GB, TB, MiB, GiB and TiB.

    Raises:
        ValueError: If the text is not a size.

    Example:
    >>> parse_size("800MB")
    800000000.0
    """
    return _parse(text, _SIZES, "a size above 0, such as 800MB, 1.2TB or 64GiB")


def parse_seconds(text: str) -> float:
    """Return a number of seconds, at least 0, written without a unit.

    Raises:
        ValueError: If the text is not such a number.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{text!r} is not a number of seconds")
    return seconds


def _parse(text: str, units: Mapping[str, float], wanted: str) -> float:
    match = re.fullmatch(f"{_NUMBER}({'|'.join(units)})", text, re.ASCII)
    if not match or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not {wanted}")
    return float(match[1]) * units[match[2]]
