"""The hosts of a job: who is there, and how to start a rank on them.

A job may begin with all its hosts, lose one, go on with the others, and have it back at the next
restart. So before each attempt the hosts are gathered anew. How that is done depends on how they
are reached: `NamedHosts` by ssh, `join.Coordinator` by their own coming.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..process.launcher import Console
from ..process.terminal import STDERR, STDOUT
from .channel import Link, ProcessLink
from .network import Ssh, View, beside, survey
from .placement import Host, Slot, assign

RETRY_SECONDS = 2.0
LEASE_SECONDS = 60.0  # What a rank on another host lives on when it hears no beat.


@dataclass(frozen=True)
class Size:
    """How many ranks a job may have.

    Attributes:
        least: With fewer it waits, and gives up in the end.
        most: More are not used.
        patience: Seconds to wait for hosts that are missing, before it goes on without them.
    """

    least: int
    most: int
    patience: float


@dataclass(frozen=True)
class Crew:
    """The ranks of one attempt: their places, and the network as each host sees it."""

    slots: Sequence[Slot]
    views: Mapping[Host, View]


@dataclass(frozen=True)
class Task:
    """What every rank runs.

    Attributes:
        command: The program and its arguments.
        exported: Environment for ranks on hosts that are reached by ssh, which give none.
    """

    command: Sequence[str]
    exported: Mapping[str, str]

    def here(self, slot: Slot) -> dict[str, Any]:
        """Return it for a rank on this host. The first one has the launcher's terminal."""
        terminals = _terminals() if slot.rank == 0 else {}
        # The end of the launcher is the end of its pipe, so there is nothing to wait for.
        return {**self.there(), "environment": {}, "terminals": terminals, "lease": None}

    def there(self) -> dict[str, Any]:
        """Return it for a rank on another host."""
        return {
            "command": self.command,
            "directory": os.getcwd(),
            "environment": self.exported,
            "terminals": {},
            "lease": LEASE_SECONDS,
        }


def _terminals() -> dict[int, tuple[int, int]]:
    """Return rows and columns of those of the launcher's outputs that are a terminal."""
    sizes = {fd: os.get_terminal_size(fd) for fd in (STDOUT, STDERR) if os.isatty(fd)}
    return {fd: (size.lines, size.columns) for fd, size in sizes.items()}


class Fleet(Protocol):
    """The hosts of a job."""

    def gather(self) -> Crew:
        """Return who takes part in the next attempt, as many as there are.

        Raises:
            UnreachableHostError: If not enough hosts came in time.
            ConfigurationError: If a host is not set up right.
            Preempted: If the launcher was asked to stop meanwhile.
        """

    def connect(self, slots: Sequence[Slot]) -> list[Link]:
        """Return a connection to a new keeper for each slot; a lost one if its host has gone."""

    def spec(self, slot: Slot) -> Mapping[str, Any]:
        """Return what a keeper is told beside what makes its rank one of the job's."""

    def leaving(self) -> list[str]:
        """Return the names of hosts that have said that they are about to go, once each."""

    def dismiss(self, code: int) -> None:
        """Tell everybody that the job has ended, and with what exit code."""


def await_hosts(
    look: Callable[[], str | None],
    console: Console,
    patience: float,
    interval: float,
) -> str | None:
    """Look again and again until nothing is missing, or time is over.

    Args:
        look: Returns what is missing, `None` for nothing.
        console: The launcher's; a request to stop ends the waiting.
        patience: Seconds.
        interval: Seconds from one look to the next.

    Returns:
        What is missing in the end.

    Raises:
        Preempted: If the launcher was asked to stop.
    """
    deadline = time.monotonic() + patience
    told = None
    while (missing := look()) is not None and time.monotonic() < deadline:
        if missing != told:
            console.say(f"waiting for hosts, {patience:g} s at most: {missing}")
            told = missing
        console.pause(min(interval, deadline - time.monotonic()))
    return missing


def keeper_here() -> Link:
    """Return a connection to a new keeper on this host."""
    return ProcessLink(beside("rank_agent.py"))


def muster(views: Mapping[Host, View], size: Size, console: Console) -> Crew:
    """Return the crew of hosts that are there, and say so if it is not a full one."""
    available = sum(host.slots for host in views)
    slots = assign(list(views), min(available, size.most))
    used = {slot.host: views[slot.host] for slot in slots}
    if len(slots) < size.most:
        names = ", ".join(host.name for host in used)
        console.say(f"going on with {len(slots)} of {size.most} ranks, on {names}")
    return Crew(slots, used)


class NamedHosts:
    """Hosts that were named at the start, reached by ssh; or this one alone.

    Args:
        hosts: Names them, each time the hosts are gathered.
        size: How many ranks.
        ssh: How to reach other hosts.
        interface: The network interface to use on every host; `None` takes the one that ssh uses.
        task: What each rank runs.
        console: The launcher's.
    """

    def __init__(
        self,
        hosts: Callable[[], Sequence[Host]],
        size: Size,
        ssh: Ssh,
        interface: str | None,
        task: Task,
        console: Console,
    ) -> None:
        self._hosts = hosts
        self._size = size
        self._ssh = ssh
        self._interface = interface
        self._task = task
        self._console = console
        self._is_first = True

    def gather(self) -> Crew:
        """See `Fleet`. At the start a host that is missing is most likely a wrong name."""
        patience = 0.0 if self._is_first else self._size.patience
        await_hosts(self._look, self._console, patience, RETRY_SECONDS)
        available = sum(host.slots for host in self._views)
        if self._wrong and (self._is_first or available < self._size.least):
            raise self._wrong[0]
        self._is_first = False
        return muster(self._views, self._size, self._console)

    def connect(self, slots: Sequence[Slot]) -> list[Link]:
        """See `Fleet`."""
        keeper = beside("rank_agent.py")
        return [
            keeper_here()
            if slot.host.is_local
            else ProcessLink(self._ssh.command(slot.hostname, keeper))
            for slot in slots
        ]

    def spec(self, slot: Slot) -> Mapping[str, Any]:
        """See `Fleet`."""
        return self._task.here(slot) if slot.host.is_local else self._task.there()

    def leaving(self) -> list[str]:
        """See `Fleet`: hosts that are reached by ssh do not say."""
        return []

    def dismiss(self, code: int) -> None:
        """See `Fleet`: there is nobody to tell."""

    def _look(self) -> str | None:
        self._views, self._wrong = survey(self._hosts(), self._ssh, self._interface)
        if sum(host.slots for host in self._views) >= self._size.most:
            return None
        missing = "; ".join(str(error).splitlines()[0] for error in self._wrong)
        return missing or None
