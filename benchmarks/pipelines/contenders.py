"""Contenders that take turns in one process, and the table of their medians.

CPU seconds are those of this process and of all processes that it has started, except for servers.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil


@dataclass(frozen=True)
class Contender:
    """A way to read one epoch.

    Attributes:
        name: In the table.
        epoch: Returns a new iterable of batches; called for each turn.
        size: Returns the number of examples of a batch.
    """

    name: str
    epoch: Callable[[], Iterable[Any]]
    size: Callable[[Any], int] = lambda batch: len(batch[0])


@dataclass(frozen=True)
class Turn:
    """One epoch: seconds to the first batch; and examples, seconds, CPU seconds."""

    first: float
    examples: int
    seconds: float
    cpu: float


def compare(
    title: str,
    contenders: Sequence[Contender],
    repeats: int,
    servers: Collection[int] = (),
) -> None:
    """Print the medians of contenders, and the ratio of their rate to the best one's.

    Args:
        title: Of the table.
        contenders: In the order of their turns.
        repeats: Number of epochs of each that count.
        servers: Ids of processes whose CPU seconds do not count. Defaults to none.
    """
    turns: list[list[Turn]] = [[] for _ in contenders]
    for turn in range(repeats + 1):
        for contender, taken in zip(contenders, turns, strict=True):
            result = take_turn(contender, servers)
            if turn > 0:  # The first pass builds the iterators' graphs.
                taken.append(result)
    rates = [median(turn.examples / turn.seconds for turn in taken) for taken in turns]
    print(f"\n{title}")
    print(f"  {'':<44} {'examples/s':>10} {'of best':>8} {'CPU ms/example':>15} {'first, s':>9}")
    for contender, rate, taken in zip(contenders, rates, turns, strict=True):
        cpu = median(1000 * turn.cpu / turn.examples for turn in taken)
        first = median(turn.first for turn in taken)
        share = rate / max(rates)
        print(
            f"  {contender.name:<44} {rate:>10.0f} {share:>8.2f} {cpu:>15.4f} {first:>9.2f}",
            flush=True,
        )


def take_turn(contender: Contender, servers: Collection[int] = ()) -> Turn:
    """Read one epoch."""
    begun, cpu = time.perf_counter(), cpu_seconds(servers)
    batches = iter(contender.epoch())
    examples = contender.size(next(batches))
    first = time.perf_counter()
    examples += sum(map(contender.size, batches))
    ended = time.perf_counter()
    return Turn(first - begun, examples, ended - begun, cpu_seconds(servers) - cpu)


def cpu_seconds(servers: Collection[int] = ()) -> float:
    """Return the user and system seconds of this process and of its children, also ended ones."""
    here = psutil.Process()
    total = 0.0
    for process in (here, *here.children(recursive=True)):
        if process.pid not in servers:
            total += sum(process.cpu_times()[:4])  # Of itself, and of children that have ended.
    return total


@functools.cache
def load_grain() -> Any:
    """Return grain, or `None` if it or array-record is not installed, and say so."""
    if not all(importlib.util.find_spec(name) for name in ("grain", "array_record")):
        print("\n(No grain in the tables: `pip install grain array-record` adds it.)")
        return None
    import absl.flags
    import grain

    absl.flags.FLAGS.mark_as_parsed()  # Which grain expects before it starts processes.
    return grain
