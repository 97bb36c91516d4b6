import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from distrib.errors import DistribError, Preempted
from distrib.launch.hosts import host_pool, ssh_hosts
from distrib.launch.hosts.host_pool import JobSize, wait_for_hosts
from distrib.launch.hosts.network import Ssh, UnreachableHostError, View
from distrib.launch.hosts.placement import Host, RankPlacement, place_ranks
from distrib.launch.hosts.ssh_hosts import SshHosts
from distrib.launch.hosts.task import Task
from distrib.launch.process.launcher_context import LauncherContext
from distrib.launch.process.liveness_file import LivenessFile
from distrib.launch.process.signals import Signals

H0, H1, H2 = Host("h0", 2), Host("h1", 2), Host("h2", 4)
Allocate = Callable[[], list[str]]


def context(log: Callable[[str], None]) -> LauncherContext:
    return LauncherContext(log, LivenessFile(None), Signals())


class Network:
    """Which hosts answer each probe in turn; the last answer repeats."""

    def __init__(self, *answers: Sequence[Host]) -> None:
        self._answers = list(answers)
        self.probed: list[Sequence[Host]] = []

    def probe(
        self, hosts: Sequence[Host], ssh: Ssh, interface: str | None
    ) -> tuple[dict[Host, View], list[DistribError]]:
        self.probed.append(hosts)
        answering = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        views = {host: View(host.name, "eth0", "h0", ()) for host in hosts if host in answering}
        missing = [host for host in hosts if host not in answering]
        return views, [UnreachableHostError(f"cannot reach {host.name}") for host in missing]


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def allocating(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> Callable[..., Allocate]:
    monkeypatch.setattr(ssh_hosts, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(host_pool, "REPORT_SECONDS", 0.0)

    def prepare(network: Network, size: JobSize) -> Allocate:
        monkeypatch.setattr(ssh_hosts, "probe_hosts", network.probe)
        task = Task(["true"], {})
        hosts = SshHosts(lambda: [H0, H1, H2], size, Ssh(), None, task, context(logged.append))
        return lambda: [placement.hostname for placement in hosts.allocate().placements]

    return prepare


def test_a_host_missing_at_the_start_is_an_error(
    allocating: Callable[..., Allocate],
) -> None:
    allocate = allocating(Network([H0, H2]), JobSize(2, 8, 60))
    with pytest.raises(UnreachableHostError, match="cannot reach h1"):
        allocate()


def test_the_pool_waits_for_a_lost_host(
    allocating: Callable[..., Allocate], logged: list[str]
) -> None:
    allocate = allocating(Network([H0, H1, H2], [H0], [H0, H2], [H0, H1, H2]), JobSize(8, 8, 60))
    assert allocate() == ["h0"] * 2 + ["h1"] * 2 + ["h2"] * 4
    assert allocate() == ["h0"] * 2 + ["h1"] * 2 + ["h2"] * 4
    assert logged == [
        "waiting for hosts, 60 s at most: cannot reach h1; cannot reach h2",
        "waiting for hosts, 60 s at most: cannot reach h1",
    ]


def test_the_job_continues_without_a_host_and_uses_it_again(
    allocating: Callable[..., Allocate], logged: list[str]
) -> None:
    network = Network([H0, H1, H2], [H0, H1])
    allocate = allocating(network, JobSize(4, 8, 0.05))
    allocate()
    assert allocate() == ["h0"] * 2 + ["h1"] * 2
    assert logged[-1] == "going on with 4 of 8 ranks, on h0, h1"
    network._answers = [[H0, H1, H2]]
    assert len(allocate()) == 8


def test_no_wait_if_the_other_hosts_have_enough_slots(
    allocating: Callable[..., Allocate], logged: list[str]
) -> None:
    allocate = allocating(Network([H0, H1, H2], [H0, H2]), JobSize(6, 6, 600))
    allocate()
    assert allocate() == ["h0"] * 2 + ["h2"] * 4
    assert logged == []


def test_too_few_hosts_are_left(allocating: Callable[..., Allocate]) -> None:
    allocate = allocating(Network([H0, H1, H2], [H0]), JobSize(4, 8, 0.02))
    allocate()
    with pytest.raises(UnreachableHostError, match="cannot reach h1"):
        allocate()


def test_a_signal_ends_the_wait(logged: list[str]) -> None:
    signals = Signals()
    threading.Timer(0.1, signals.record, [signal.SIGTERM]).start()
    with pytest.raises(Preempted):
        wait_for_hosts(
            lambda: "h1", LauncherContext(logged.append, LivenessFile(None), signals), 600, 60
        )


def test_this_host_alone_is_always_available(tmp_path: Path) -> None:
    here = Host("localhost", 3)
    task = Task([sys.executable], {"PATH": "elsewhere"})
    hosts = SshHosts(lambda: [here], JobSize(2, 2, 0), Ssh(), None, task, context(print))
    allocation = hosts.allocate()
    assert [placement.rank for placement in allocation.placements] == [0, 1]
    assert hosts.spec(allocation.placements[0]) == {
        "command": [sys.executable],
        "directory": os.getcwd(),
        "environment": {},
        "terminals": {},
        "lease": None,
    }


def test_other_hosts_get_the_environment_and_a_lease() -> None:
    task = Task(["true"], {"PATH": "/bin"})
    hosts = SshHosts(lambda: [H1], JobSize(1, 1, 0), Ssh(), None, task, context(print))
    spec = hosts.spec(RankPlacement(H1, 0, 1, 0, 1, 0, 1))
    assert (spec["environment"], spec["lease"]) == ({"PATH": "/bin"}, 60)


def test_the_hosts_are_read_again_for_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that hosts can be added to a running job."""
    size, task = JobSize(1, 99, 0), Task(["true"], {})
    network = Network([H0, H1, H2])
    names = [H0]
    monkeypatch.setattr(ssh_hosts, "probe_hosts", network.probe)
    hosts = SshHosts(lambda: names, size, Ssh(), None, task, context(print))
    assert len(hosts.allocate().placements) == 2
    names.append(H2)
    assert len(hosts.allocate().placements) == 6


def test_the_files_of_a_spare_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are open already when it becomes a rank; a restart must not fail because of them."""
    counts: list[int] = []
    monkeypatch.setattr(ssh_hosts, "reserve_files", counts.append)
    host = Host("localhost", 2)
    task = Task(["true"], {})
    pool = SshHosts(lambda: [host], JobSize(2, 2, 60), Ssh(), None, task, context(print))
    first, second = place_ranks([host], 2)
    spare = pool.connect_spare(second)
    channels = pool.connect([first, second], {second: spare})
    assert channels[1] is spare
    assert counts == [3, 3]
    for channel in channels:
        channel.abort()
        channel.close()
