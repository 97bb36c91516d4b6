"""Spares: interpreters that wait, with everything imported, to become ranks of the next attempt.

Some seconds after all ranks have trained, a spare is started for each of them, on its host, one
after the other. It costs the host a few seconds of a core, and memory (`launch/spare/memory.py`).
A spare that ends is replaced, ever more slowly. Spares end with the launcher, as ranks do.

A spare is started with the spec of its rank, without the variables that the launcher gives each
rank of an attempt. Host and spec are the spare's key: it can become every rank with the same key.

A rank is a misfit if its script sets variables, before it imports the libraries, with which the
spare has not imported them. It then begins again as an ordinary interpreter and reports the
variables (`launch/spare/held_modules.py`), and the next spare for this rank has them.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrib.errors import ConfigurationError
from distrib.heartbeat import TRAINING

from ..hosts.channel import Channel, ClosedChannel
from ..hosts.placement import RankPlacement

DELAY_SECONDS = 10.0  # Short jobs need no spares, and the first steps of others come first.
ROUND_SECONDS = 5.0
MAX_PAUSE_SECONDS = 600.0
MAX_MISFITS = 2  # Attempts that have one.
# What a spare imports, in this order, before the module of its backend; each with those before it
# that it imports as well.
MODULES: Mapping[str, Sequence[str]] = {
    "numpy": (),
    "distrib": ("numpy",),
    "tensorflow": ("numpy",),
    "keras": ("numpy", "tensorflow"),
    "distrib.callbacks": (),
}
BACKENDS = "distrib.backends."
# What the module of a backend imports only when it starts.
BACKEND_LIBRARIES: Mapping[str, Sequence[str]] = {"horovod": ["horovod.tensorflow"]}

Specs = Mapping[RankPlacement, Mapping[str, Any]]
Variables = Mapping[str, str | None]  # `None` for one that is removed.


@dataclass(frozen=True)
class WantedSpare:
    """A spare that is wanted for a rank.

    Attributes:
        key: What makes another spare as good.
        spec: For its agent.
    """

    key: str
    spec: Mapping[str, Any]


Wanted = Mapping[RankPlacement, WantedSpare]


@dataclass(frozen=True)
class Spare:
    """A spare.

    Attributes:
        key: Of the ranks that it can become.
        host: Its name.
        channel: To its agent.
    """

    key: str
    host: str
    channel: Channel


class Spares:
    """The spares of a job.

    Those that wait are all for the present attempt: the next one takes what it can use and ends
    the others, which would use up memory and the launcher's files.

    Args:
        connect: Starts a rank agent for a spare on the host of a rank.
        backend: Of the job.
        enabled: Whether to have any.
    """

    def __init__(
        self, connect: Callable[[RankPlacement], Channel], backend: str, enabled: bool
    ) -> None:
        self._connect = connect
        self._modules = _modules(backend)
        self._enabled = enabled
        self._specs: Specs = {}
        self._trained: set[int] = set()
        # That the script sets before its imports: in each rank, and where that is not known.
        self._variables: dict[int, Variables] = {}
        self._last_variables: Variables = {}
        self._misfits = 0
        self._has_misfit = False  # In the present attempt.
        self._lock = threading.Lock()
        # Empty until all ranks of an attempt have trained. A new object whenever it changes.
        self._wanted: Wanted = {}
        self._waiting: list[Spare] = []
        self._pauses: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._done = threading.Event()
        self._threads: list[threading.Thread] = []

    def take(self, specs: Specs) -> dict[RankPlacement, Channel]:
        """Begin an attempt, and return the channels to the spares that become its ranks.

        Args:
            specs: Of the attempt's ranks, by placement.
        """
        self._want({})
        self._specs, self._trained, self._has_misfit = specs, set(), False
        self._drop_ended()
        free: defaultdict[str, list[Spare]] = defaultdict(list)
        for waiting in self._take_all():
            free[waiting.key].append(waiting)
        taken = {}
        for placement, spare in self._for(specs if free else {}).items():
            if free[spare.key]:
                taken[placement] = free[spare.key].pop().channel
        _end(itertools.chain.from_iterable(free.values()))
        return taken

    def record(self, rank: int, facts: Mapping[str, Any]) -> str | None:
        """Follow a heartbeat; return a message for the user if there is something to say."""
        if facts["phase"] == TRAINING and self._enabled and not self._wanted:
            self._trained.add(rank)
            if len(self._trained) == len(self._specs):
                self._begin()
        return self._fit(rank, facts) if "misfit" in facts else None

    def close(self) -> None:
        """End all spares."""
        self._done.set()
        self._want({})
        _end(self._take_all())

    def _fit(self, rank: int, facts: Mapping[str, Any]) -> str | None:
        """Have the next spares fit the script, from which the last ones differed."""
        if not self._enabled:
            return None
        variables, is_first = facts["variables"], not self._has_misfit
        self._has_misfit = True
        self._misfits += is_first
        self._enabled = variables is not None and self._misfits < MAX_MISFITS
        self._variables[rank] = self._last_variables = variables or {}
        self._want({})
        _end(self._take_all())
        if self._enabled and not is_first:  # One message is enough.
            return None
        end = "" if self._enabled else " The job has no spares any more."
        return f"rank {rank} could not start from a spare: {facts['misfit']}.{end}"

    def _begin(self) -> None:
        """Want a spare for each rank."""
        self._pauses.clear()
        begin = time.monotonic() + DELAY_SECONDS
        self._not_before = {placement.hostname: begin for placement in self._specs}
        self._want(self._for(self._specs))
        if not self._threads:
            works = (self._keep, self._keep_alive)
            self._threads = [threading.Thread(target=work, daemon=True) for work in works]
            for thread in self._threads:
                thread.start()

    def _want(self, wanted: Wanted) -> None:
        with self._lock:
            self._wanted = wanted

    def _for(self, specs: Specs) -> dict[RankPlacement, WantedSpare]:
        """Return the spare that fits each rank."""
        wanted = {}
        for placement, spec in specs.items():
            variables = self._variables.get(placement.rank, self._last_variables)
            spec = {**spec, "spare": {"modules": self._modules, "variables": variables}}
            # Which streams are terminals matters, but not their sizes, which may change.
            alike = {**spec, "terminals": list(spec["terminals"])}
            wanted[placement] = WantedSpare(json.dumps([placement.hostname, alike]), spec)
        return wanted

    def _keep(self) -> None:
        """Keep as many spares as are wanted, until the job ends."""
        while not self._done.wait(ROUND_SECONDS):
            self._drop_ended()
            self._add(self._wanted)

    def _keep_alive(self) -> None:
        """Send keepalives, as ranks get them: to start a spare may take longer than its lease."""
        while not self._done.wait(ROUND_SECONDS):
            with self._lock:
                for spare in self._waiting:
                    spare.channel.send(b"\n")

    def _drop_ended(self) -> None:
        """Drop the spares that have ended, and let their hosts wait for the next ones."""
        with self._lock:
            waiting: list[Spare] = []
            ended: list[Spare] = []
            for spare in self._waiting:
                (waiting if spare.channel.is_open() else ended).append(spare)
            self._waiting = waiting
        _end(ended)
        for spare in ended:
            pause = min(self._pauses.get(spare.host, ROUND_SECONDS) * 2, MAX_PAUSE_SECONDS)
            self._pauses[spare.host] = pause
            self._not_before[spare.host] = time.monotonic() + pause

    def _add(self, wanted: Wanted) -> None:
        """Start at most one spare on each host, while the same are wanted."""
        with self._lock:
            surplus = Counter(spare.key for spare in self._waiting)
        started: set[str] = set()
        for placement, spare in wanted.items():
            if self._wanted is not wanted:
                return
            host = placement.hostname
            surplus[spare.key] -= 1
            is_time = time.monotonic() >= self._not_before.get(host, 0.0)
            if surplus[spare.key] < 0 and is_time and host not in started:
                started.add(host)
                self._start(placement, wanted)

    def _start(self, placement: RankPlacement, wanted: Wanted) -> None:
        try:
            channel = self._connect(placement)
        except (OSError, ConfigurationError):  # No memory or files for it: as one that has ended.
            channel = ClosedChannel()
        channel.send(json.dumps(wanted[placement].spec).encode() + b"\n")
        spare = Spare(wanted[placement].key, placement.hostname, channel)
        with self._lock:
            is_wanted = self._wanted is wanted
            if is_wanted:
                self._waiting.append(spare)
        if not is_wanted:
            _end([spare])

    def _take_all(self) -> list[Spare]:
        """Return all spares that wait; they wait no longer."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        return waiting


def _modules(backend: str) -> dict[str, Sequence[str]]:
    """Return what a spare imports, as `MODULES`; `distrib.init()` needs all of it."""
    libraries = dict.fromkeys(BACKEND_LIBRARIES.get(backend, ()), ())
    return {**MODULES, f"{BACKENDS}{backend}": tuple(MODULES), **libraries}


def _end(spares: Iterable[Spare]) -> None:
    for spare in spares:
        spare.channel.abort()
        spare.channel.close()
