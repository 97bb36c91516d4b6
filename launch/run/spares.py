"""Spares: interpreters that wait, with everything imported, to become ranks of the next attempt.

Some seconds after all ranks have trained, a spare is started for each of them, on its host, one
after the other. It costs the host a few seconds of a core, and memory (`launch/spare/memory.py`).
A spare that ends is replaced, ever more slowly. Spares end with the launcher, as ranks do.

A spare becomes a rank whose spec is its own but for the environment of the rank.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrib.heartbeat import TRAINING

from ..hosts.channel import Channel, ClosedChannel
from ..hosts.placement import RankPlacement

DELAY_SECONDS = 10.0  # Short jobs need no spares, and the first steps of others come first.
ROUND_SECONDS = 5.0
MAX_PAUSE_SECONDS = 600.0
MAX_MISFITS = 2
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

Specs = Mapping[RankPlacement, Mapping[str, Any]]


@dataclass(frozen=True)
class Spare:
    """A spare.

    Attributes:
        key: What the specs of the ranks that it can become have in common.
        host: Its name.
        channel: To its agent.
    """

    key: str
    host: str
    channel: Channel


class Spares:
    """The spares of a job.

    Args:
        connect: Starts a rank agent for a spare on the host of a rank.
        backend: Of the job.
        enabled: Whether to have any.
    """

    def __init__(
        self, connect: Callable[[RankPlacement], Channel], backend: str, enabled: bool
    ) -> None:
        self._connect = connect
        self._backend = backend
        self._enabled = enabled
        self._specs: Specs = {}
        self._wanted: Specs = {}  # Empty until all ranks of an attempt have trained.
        self._trained: set[int] = set()
        self._variables: Mapping[str, str | None] = {}  # That the script sets before its imports.
        self._misfits = 0
        self._lock = threading.Lock()
        self._waiting: list[Spare] = []
        self._pauses: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, specs: Specs) -> dict[RankPlacement, Channel]:
        """Begin an attempt, and return the channels to the spares that become its ranks.

        Args:
            specs: Of the attempt's ranks, by placement.
        """
        self._wanted, self._specs, self._trained = {}, specs, set()
        self._drop_ended()
        taken = {}
        with self._lock:
            for placement, spec in specs.items():
                key = _key(placement, spec)
                spare = next((spare for spare in self._waiting if spare.key == key), None)
                if spare is not None:
                    self._waiting.remove(spare)
                    taken[placement] = spare.channel
        return taken

    def record(self, rank: int, facts: Mapping[str, Any]) -> str | None:
        """Follow a heartbeat; return a message for the user if there is something to say."""
        if facts["phase"] == TRAINING and self._enabled and not self._wanted:
            self._trained.add(rank)
            if len(self._trained) == len(self._specs):
                self._want()
        return self._fit(rank, facts) if "misfit" in facts else None

    def close(self) -> None:
        """End all spares."""
        self._done.set()
        self._drop(lambda spare: True)

    def _fit(self, rank: int, facts: Mapping[str, Any]) -> str | None:
        """Have the next spares fit the script, from which the last ones differed."""
        variables = facts["variables"]
        if not self._enabled or variables == self._variables:  # Another rank has reported it.
            return None
        self._misfits += 1
        self._variables = variables or {}
        self._enabled = variables is not None and self._misfits < MAX_MISFITS
        self._drop(lambda spare: True)
        end = "" if self._enabled else " The job has no spares any more."
        return f"rank {rank} could not start from a spare: {facts['misfit']}.{end}"

    def _want(self) -> None:
        self._pauses.clear()
        begin = time.monotonic() + DELAY_SECONDS
        self._not_before = {placement.hostname: begin for placement in self._specs}
        self._wanted = self._specs
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep, daemon=True)
            self._thread.start()

    def _keep(self) -> None:
        """Keep as many spares as are wanted, until the job ends."""
        while not self._done.wait(ROUND_SECONDS):
            self._drop_ended()
            with self._lock:
                for spare in self._waiting:
                    spare.channel.send(b"\n")  # A keepalive, as ranks get it.
            if self._wanted:
                self._adjust(self._wanted)

    def _drop_ended(self) -> None:
        """Drop the spares that have ended, and let their hosts wait for the next ones."""
        for spare in self._drop(lambda spare: not spare.channel.is_open()):
            pause = min(self._pauses.get(spare.host, ROUND_SECONDS) * 2, MAX_PAUSE_SECONDS)
            self._pauses[spare.host] = pause
            self._not_before[spare.host] = time.monotonic() + pause

    def _adjust(self, wanted: Specs) -> None:
        """Drop the spares that are not wanted any more, and start at most one on each host."""
        keys = {_key(placement, spec) for placement, spec in wanted.items()}
        self._drop(lambda spare: spare.key not in keys)
        with self._lock:
            surplus = Counter(spare.key for spare in self._waiting)
        started: set[str] = set()
        for placement, spec in wanted.items():
            key, host = _key(placement, spec), placement.hostname
            surplus[key] -= 1
            is_time = time.monotonic() >= self._not_before.get(host, 0.0)
            if surplus[key] < 0 and is_time and host not in started:
                started.add(host)
                self._start(placement, spec)

    def _start(self, placement: RankPlacement, spec: Mapping[str, Any]) -> None:
        try:
            channel = self._connect(placement)
        except OSError:  # No memory for a process, for one: as a spare that ends at once.
            channel = ClosedChannel()
        modules = {**MODULES, f"{BACKENDS}{self._backend}": ()}
        order = {"modules": modules, "variables": self._variables}
        channel.send(json.dumps({**spec, "spare": order}).encode() + b"\n")
        with self._lock:
            self._waiting.append(Spare(_key(placement, spec), placement.hostname, channel))
        if self._done.is_set():
            self.close()

    def _drop(self, unfit: Callable[[Spare], object]) -> list[Spare]:
        """End and return the spares that are unfit."""
        with self._lock:
            dropped = [spare for spare in self._waiting if unfit(spare)]
            self._waiting = [spare for spare in self._waiting if spare not in dropped]
        for spare in dropped:
            spare.channel.abort()
            spare.channel.close()
        return dropped


def _key(placement: RankPlacement, spec: Mapping[str, Any]) -> str:
    return json.dumps([placement.hostname, {**spec, "environment": None}])
