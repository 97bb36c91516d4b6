"""Hosts that are named on the command line or in a hostfile and reached by ssh, or this host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..process.launcher_context import LauncherContext
from ..process.open_files import reserve_files
from .channel import Channel, ProcessChannel
from .host_pool import (
    PIPES_PER_PROCESS,
    Allocation,
    JobSize,
    allocate_ranks,
    start_local_agent,
    wait_for_hosts,
)
from .network import Ssh, probe_hosts, script_command
from .placement import Host, RankPlacement
from .task import Task

RETRY_SECONDS = 2.0


class SshHosts:
    """A `HostPool` of named hosts.

    Args:
        hosts: Returns the hosts; called before each attempt.
        size: How many ranks.
        ssh: How to reach other hosts.
        interface: The network interface to use on every host; `None` takes the one that ssh uses.
        task: What each rank runs.
        context: The launcher's.
    """

    def __init__(
        self,
        hosts: Callable[[], Sequence[Host]],
        size: JobSize,
        ssh: Ssh,
        interface: str | None,
        task: Task,
        context: LauncherContext,
    ) -> None:
        self._hosts = hosts
        self._size = size
        self._ssh = ssh
        self._interface = interface
        self._task = task
        self._context = context
        self._is_first = True

    def allocate(self) -> Allocation:
        """See `HostPool`. Before the first attempt a missing host is most likely a wrong name."""
        timeout = 0.0 if self._is_first else self._size.timeout
        wait_for_hosts(self._find_missing, self._context, timeout, RETRY_SECONDS)
        available = sum(host.slots for host in self._views)
        if self._errors and (self._is_first or available < self._size.min_ranks):
            raise self._errors[0]
        self._is_first = False
        return allocate_ranks(self._views, self._size, self._context)

    def connect(
        self, placements: Sequence[RankPlacement], spares: Mapping[RankPlacement, Channel]
    ) -> list[Channel]:
        """See `HostPool`."""
        reserve_files(PIPES_PER_PROCESS * (len(placements) - len(spares)))
        return [spares.get(placement) or self._start_agent(placement) for placement in placements]

    def connect_spare(self, placement: RankPlacement) -> Channel:
        """See `HostPool`: the agent of a spare is started like any other."""
        reserve_files(PIPES_PER_PROCESS)
        return self._start_agent(placement)

    def _start_agent(self, placement: RankPlacement) -> Channel:
        if placement.host.is_local:
            return start_local_agent()
        agent = script_command("rank_agent.py")
        return ProcessChannel(self._ssh.command(placement.hostname, agent))

    def spec(self, placement: RankPlacement) -> Mapping[str, Any]:
        """See `HostPool`."""
        is_local = placement.host.is_local
        return self._task.local_spec(placement) if is_local else self._task.remote_spec()

    def preempted_hosts(self) -> list[str]:
        """See `HostPool`: a host that is reached by ssh has no way to announce that it stops."""
        return []

    def shut_down(self, exit_code: int) -> None:
        """See `HostPool`: nothing is left running on a host that is reached by ssh."""

    def _find_missing(self) -> str | None:
        self._views, self._errors = probe_hosts(self._hosts(), self._ssh, self._interface)
        if sum(host.slots for host in self._views) >= self._size.max_ranks:
            return None
        missing = "; ".join(str(error).splitlines()[0] for error in self._errors)
        return missing or None
