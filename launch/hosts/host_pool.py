"""The hosts that a job can use, allocated anew before each attempt.

A job may start with all its hosts, lose one, continue with the others, and get it back at the next
restart. How hosts are found depends on how they are reached: `SshHosts` connects to them by ssh,
and with `--join` they connect to the `Coordinator`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..process.launcher_context import LauncherContext
from .channel import Channel, ProcessChannel
from .names import host_names
from .network import View, script_command
from .placement import Host, RankPlacement, place_ranks

PIPES_PER_PROCESS = 3
REPORT_SECONDS = 5.0  # Between two messages about missing hosts.


@dataclass(frozen=True)
class JobSize:
    """How many ranks a job may have.

    Attributes:
        min_ranks: With fewer the job waits, and fails after `timeout`.
        max_ranks: More are not used.
        timeout: Seconds to wait for missing hosts before continuing without them.
    """

    min_ranks: int
    max_ranks: int
    timeout: float


@dataclass(frozen=True)
class Allocation:
    """The ranks of one attempt: where each runs, and the network as each host sees it."""

    placements: Sequence[RankPlacement]
    views: Mapping[Host, View]


class HostPool(Protocol):
    """The hosts of a job."""

    def allocate(self) -> Allocation:
        """Return the hosts and ranks of the next attempt: as many as are available.

        Raises:
            UnreachableHostError: If not enough hosts were available in time.
            ConfigurationError: If a host is not set up correctly.
            Preempted: If the launcher was asked to stop meanwhile.
        """

    def connect(
        self, placements: Sequence[RankPlacement], spares: Mapping[RankPlacement, Channel]
    ) -> list[Channel]:
        """Start a rank agent for each rank; the channel is closed if its host is lost.

        Args:
            placements: Of the ranks.
            spares: Channels that `connect_spare` has returned, for ranks that spares become.

        Raises:
            ConfigurationError: If this process may not open as many files as that takes.
        """

    def connect_spare(self, placement: RankPlacement) -> Channel:
        """Start a rank agent for a spare on the host of a rank; any thread may call this.

        Raises:
            ConfigurationError: If this process may not open as many files as that takes.
            OSError: If it cannot be started.
        """

    def spec(self, placement: RankPlacement) -> Mapping[str, Any]:
        """Return what the rank agent runs, without the rank's own environment variables."""

    def preempted_hosts(self) -> list[str]:
        """Return the names of hosts that announced that they will stop, each name once."""

    def shut_down(self, exit_code: int) -> None:
        """Tell all hosts that the job has ended, with its exit code."""


def wait_for_hosts(
    find_missing: Callable[[], str | None],
    context: LauncherContext,
    timeout: float,
    interval: float,
) -> str | None:
    """Wait until no host is missing, or until the timeout.

    Args:
        find_missing: Returns which hosts are missing, `None` if none is.
        context: The launcher's; a request to stop ends the wait.
        timeout: Seconds.
        interval: Seconds between two calls of `find_missing`.

    Returns:
        Which hosts are still missing.

    Raises:
        Preempted: If the launcher was asked to stop.
    """
    deadline = time.monotonic() + timeout
    reported, next_report = None, 0.0
    while (missing := find_missing()) is not None and (now := time.monotonic()) < deadline:
        if missing != reported and now >= next_report:  # A thousand hosts come one by one.
            context.log(f"waiting for hosts, {timeout:g} s at most: {missing}")
            reported, next_report = missing, now + REPORT_SECONDS
        context.pause(min(interval, deadline - time.monotonic()))
    return missing


def start_local_agent() -> Channel:
    """Start a rank agent on this host and return the channel to it."""
    return ProcessChannel(script_command("rank_agent.py"))


def allocate_ranks(
    views: Mapping[Host, View], size: JobSize, context: LauncherContext
) -> Allocation:
    """Place the ranks on the available hosts, and log if there are fewer than `max_ranks`."""
    available = sum(host.slots for host in views)
    placements = place_ranks(list(views), min(available, size.max_ranks))
    used = {placement.host: views[placement.host] for placement in placements}
    if len(placements) < size.max_ranks:
        names = host_names(host.name for host in used)
        context.log(f"going on with {len(placements)} of {size.max_ranks} ranks, on {names}")
    return Allocation(placements, used)
