"""Coordinator of `distrib run --join`: hosts register themselves instead of being reached by ssh.

Where hosts have no ssh between them, such as the pods of a Kubernetes Job, the same command is
started on each of them. The host that `--join` names is the coordinator and runs the job. On every
other host a host agent (`host_agent.py`) connects to it, says which host it is, and starts rank
agents on request, so that a rank there is supervised like any other.

A host agent that loses the coordinator kills its ranks and connects again. So a coordinator that
has died and was replaced finds all hosts connected, and starts the next attempt.

A host agent never runs a command that it is sent: it runs the command that it was started with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from distrib.errors import EXIT_FINISHED

from ..process.launcher_context import LauncherContext
from ..process.open_files import allow_files, reserve_files
from .channel import Channel
from .host_pool import (
    PIPES_PER_PROCESS,
    Allocation,
    JobSize,
    allocate_ranks,
    start_local_agent,
    wait_for_hosts,
)
from .host_registry import AgentRequest, HostRegistry
from .names import host_names
from .network import UnreachableHostError, View, local_view, remote_view
from .placement import Host, RankPlacement
from .protocol import ANSWER_SECONDS
from .task import Task

POLL_SECONDS = 0.1  # Between two looks at which hosts are connected.


class Coordinator:
    """A `HostPool` of the hosts that have joined, and this host.

    Args:
        port: Where to listen.
        token: The secret that the hosts must know. If empty, only loopback is listened on.
        own: This host, and how many ranks it may have.
        size: How many ranks.
        interface: The network interface to use on every host; `None` takes that of the connection.
        task: What each rank runs.
        context: The launcher's.

    Raises:
        ConfigurationError: If the port is taken.
    """

    def __init__(
        self,
        port: int,
        token: bytes,
        own: Host,
        size: JobSize,
        interface: str | None,
        task: Task,
        context: LauncherContext,
    ) -> None:
        self._own = own
        self._size = size
        self._interface = interface
        self._task = task
        self._context = context
        self._attempt = 0
        self._allocated: set[str] = set()
        allow_files(2 * size.max_ranks)  # Two for each host, which has one rank or more.
        # Of the agents of spares on other hosts.
        self._spare_requests: WeakKeyDictionary[Channel, AgentRequest] = WeakKeyDictionary()
        self._registry = HostRegistry(port, token, own.name, context.log)

    def allocate(self) -> Allocation:
        """See `HostPool`."""
        missing = wait_for_hosts(
            self._find_missing, self._context, self._size.timeout, POLL_SECONDS
        )
        views = self._views()
        available = sum(host.slots for host in views)
        if available < self._size.min_ranks:
            raise UnreachableHostError(
                f"after {self._size.timeout:g} s {available} of at least {self._size.min_ranks} "
                f"ranks have a place: {missing}. Find out why the other hosts did not join; "
                "started again, the job resumes from its last checkpoint."
            )
        allocation = allocate_ranks(views, self._size, self._context)
        self._allocated = {host.name for host in allocation.views}
        return allocation

    def connect(
        self, placements: Sequence[RankPlacement], spares: Mapping[RankPlacement, Channel]
    ) -> list[Channel]:
        """See `HostPool`."""
        self._attempt += 1
        usable = {
            placement: channel
            for placement, channel in spares.items()
            if placement.host == self._own or self._announce(channel)
        }
        others = [placement for placement in placements if placement not in usable]
        local = [placement for placement in others if placement.host == self._own]
        reserve_files(len(others) + PIPES_PER_PROCESS * len(local))
        requests = {
            placement: self._registry.request_agent(placement.hostname, self._attempt)
            for placement in others
            if placement.host != self._own
        }
        began = time.monotonic()
        return [
            self._registry.channel(requests[placement], began)
            if placement in requests
            else usable.get(placement) or start_local_agent()
            for placement in placements
        ]

    def _announce(self, channel: Channel) -> bool:
        """Tell its host that a spare becomes a rank; close the channel if it cannot."""
        is_usable = self._registry.announce_rank(self._spare_requests.pop(channel), self._attempt)
        if not is_usable:
            channel.abort()
            channel.close()
        return is_usable

    def connect_spare(self, placement: RankPlacement) -> Channel:
        """See `HostPool`."""
        if placement.host == self._own:
            reserve_files(PIPES_PER_PROCESS)
            return start_local_agent()
        reserve_files(1)
        request = self._registry.request_agent(placement.hostname, attempt=None)
        channel = self._registry.channel(request, time.monotonic())
        self._spare_requests[channel] = request
        return channel

    def spec(self, placement: RankPlacement) -> Mapping[str, Any]:
        """See `HostPool`: other hosts have a command and a directory of their own."""
        if placement.host == self._own:
            return self._task.local_spec(placement)
        return {**self._task.remote_spec(), "command": None, "directory": None, "environment": {}}

    def preempted_hosts(self) -> list[str]:
        """See `HostPool`."""
        return self._registry.take_stopping()

    def shut_down(self, exit_code: int) -> None:
        """See `HostPool`.

        A coordinator that was itself asked to stop does not end the job: another one replaces it.
        """
        if exit_code != EXIT_FINISHED and self._context.signals.stop_requested:
            self._registry.close(None)
            return
        self._announce_end(exit_code)
        self._registry.close(exit_code)

    def _announce_end(self, exit_code: int) -> None:
        """Tell all hosts that the job has ended, and wait until they know.

        The hosts end only when this process has nothing left to do but to end as well. If it is
        killed before that, its replacement needs them to find out that the job is done.
        """
        self._registry.announce_end(exit_code)
        timeout = self._size.timeout if exit_code == EXIT_FINISHED else ANSWER_SECONDS
        deadline = time.monotonic() + timeout
        expected = self._allocated - {self._own.name}
        while not expected <= self._registry.goodbyes and time.monotonic() < deadline:
            self._context.liveness_file.touch()
            time.sleep(0.05)

    def _find_missing(self) -> str | None:
        hosts = [host.host for host in self._registry.available()]
        slots = self._own.slots + sum(host.slots for host in hosts)
        if slots >= self._size.max_ranks:
            return None
        names = host_names([self._own.name, *(host.name for host in hosts)])
        return f"{slots} of {self._size.max_ranks} ranks have a place, on {names}"

    def _views(self) -> dict[Host, View]:
        """Return the network views of all hosts that answer, this one first."""
        hosts = self._registry.available()
        views, addresses = {}, []
        numbers = [host.request({"survey": True}) for host in hosts]
        deadline = time.monotonic() + ANSWER_SECONDS
        for host, number in zip(hosts, numbers, strict=True):
            answer = host.answer(number, deadline)
            if answer is None:
                self._registry.forget(host)
                continue
            views[host.host] = remote_view(host.host.name, answer, self._interface)
            addresses.append(views[host.host].launcher)
        return {self._own: local_view(self._own.slots, addresses, self._interface), **views}
