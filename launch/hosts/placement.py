"""Which rank runs on which host: hosts are filled in the order in which they are named.

Ranks of one host are neighbours, so that most of a ring's traffic stays inside a host. Horovod
numbers ranks the same way.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from distrib.errors import UsageError

from .probe import interface_addresses

NO_IPV6 = "Horovod's rendezvous knows IPv4 only: write the host's name or its IPv4 address"


@dataclass(frozen=True)
class Host:
    """A machine, and how many ranks it can run."""

    name: str
    slots: int

    @cached_property
    def is_local(self) -> bool:
        """Whether this is the machine that the launcher runs on."""
        own, name = socket.gethostname(), self.name
        return (
            name in ("localhost", own)
            or name.startswith(f"{own}.")
            or own.startswith(f"{name}.")
            or name in interface_addresses().values()
        )


@dataclass(frozen=True)
class RankPlacement:
    """Where one rank runs, with the attribute names that Horovod's rendezvous server expects.

    `local_rank` counts the ranks of its host; `cross_rank` counts the hosts that have a rank with
    this `local_rank`.
    """

    host: Host
    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int

    @property
    def hostname(self) -> str:
        """The host's name as the user wrote it."""
        return self.host.name


def parse_hosts(text: str) -> list[Host]:
    """Return the hosts of `name:slots,...`; a name alone has one slot.

    Raises:
        UsageError: If a part is neither, or two parts name the same machine.
    """
    hosts: dict[str, Host] = {}
    local: Host | None = None
    for part in text.split(","):
        match = re.fullmatch(r"(\w[\w.-]*)(?::([1-9]\d*))?", part.strip(), re.ASCII)
        if not match:
            raise UsageError(f"-H {text}: {part!r} is not of the form {_form(part)}.")
        host = Host(match[1], int(match[2] or 1))
        same = hosts.get(host.name) or (local if host.is_local else None)
        if same is not None:
            raise UsageError(
                f"-H {text}: {host.name} and {same.name} are the same host; name it once, "
                f"with all its slots: {same.name}:{host.slots + same.slots}."
            )
        hosts[host.name] = host
        local = host if host.is_local else local
    return list(hosts.values())


def _form(part: str) -> str:
    """Return which form a host has to have, with a hint for what was written instead."""
    form = "host:slots, like h0:4,h1:4"
    if is_ipv6(part):
        return f"{form}. {NO_IPV6}"
    if "@" in part:
        return f"{form}. Set the user in ~/.ssh/config: `Host h0` and `User name`"
    return form


def is_ipv6(host: str) -> bool:
    """Tell whether a host, with slots or a port behind it or without, is an IPv6 address."""
    return "[" in host or "::" in host


def parse_hostfile(path: Path) -> list[Host]:
    """Return the hosts of a file with a line `name slots=N` each; a name alone has one slot.

    Raises:
        UsageError: If the file cannot be read, or has lines of another form.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise UsageError(f"--hostfile {path}: {error.strerror}.") from error
    words = [re.fullmatch(r"(\S+?)(?:(?:\s+slots\s*=\s*|:)(\d+))?", line) for line in lines if line]
    if not words or None in words:
        raise UsageError(f"--hostfile {path}: expected lines like `h0 slots=4`.")
    return parse_hosts(",".join(f"{word[1]}:{word[2] or 1}" for word in words if word))


def place_ranks(hosts: Sequence[Host], size: int) -> list[RankPlacement]:
    """Return the placement of each of `size` ranks, in the order of the ranks.

    Raises:
        UsageError: If the hosts have fewer slots.
    """
    available = sum(host.slots for host in hosts)
    if size > available:
        names = ",".join(f"{host.name}:{host.slots}" for host in hosts)
        raise UsageError(f"-np {size}: the hosts have {available} slots ({names}).")
    used: list[tuple[Host, int]] = []
    left = size
    for host in hosts:
        used.append((host, min(host.slots, left)))
        left -= used[-1][1]
    cross_sizes = Counter(local_rank for _, count in used for local_rank in range(count))
    cross_ranks = Counter[int]()
    placements: list[RankPlacement] = []
    for host, count in used:
        for local_rank in range(count):
            cross = (cross_ranks[local_rank], cross_sizes[local_rank])
            placements.append(RankPlacement(host, len(placements), size, local_rank, count, *cross))
            cross_ranks[local_rank] += 1
    return placements
