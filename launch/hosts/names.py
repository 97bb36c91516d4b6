"""How messages name many hosts and ranks: neighbours as one range, and not more than fit a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .placement import RankPlacement

MAX_PARTS = 8
_LAST_NUMBER = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)


def host_names(names: Iterable[str]) -> str:
    """Return `h0 to h41, h43` for the names of 43 hosts: it shows which one is missing."""
    return _enumerate(sorted(names, key=natural_order), " to ")


def rank_numbers(ranks: Iterable[int]) -> str:
    """Return `rank 3` for one rank and `ranks 0-2, 5` for several."""
    numbers = [str(rank) for rank in sorted(ranks)]
    return f"rank{'s' * (len(numbers) > 1)} {_enumerate(numbers, '-')}"


def rank_name(rank: int, host: str) -> str:
    """Return `rank 3 on h1`."""
    return f"rank {rank} on {host}"


def rank_names(placements: Iterable[RankPlacement]) -> str:
    """Return `rank 3 on h1, rank 4 on h2`."""
    return shorten([rank_name(placement.rank, placement.hostname) for placement in placements])


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which h2 comes before h10."""
    parts = "".join(c if c.isdecimal() else f"\0{c}\0" for c in name).split("\0")
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part]


def shorten(parts: Sequence[str]) -> str:
    """Return the first parts, and how many there are beyond them."""
    shown = ", ".join(parts[:MAX_PARTS])
    left = len(parts) - MAX_PARTS
    return shown if left <= 0 else f"{shown} and {left} more"


def _enumerate(names: Sequence[str], to: str) -> str:
    """Return names in which three neighbours or more are one part; names are in order."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _next(runs[-1][-1]) == name:
            runs[-1].append(name)
        else:
            runs.append([name])
    parts: list[str] = []
    for run in runs:
        parts += run if len(run) < 3 else [f"{run[0]}{to}{run[-1]}"]
    return shorten(parts)


def _next(name: str) -> str | None:
    """Return the name that follows in a numbering; leading zeros are kept."""
    match = _LAST_NUMBER.fullmatch(name)
    if match is None:
        return None
    head, number, tail = match.groups()
    return f"{head}{int(number) + 1:0{len(number)}}{tail}"
