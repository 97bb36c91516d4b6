import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from distrib.errors import DistribError, Preempted
from distrib.launch.hosts import allocation
from distrib.launch.hosts.allocation import NamedHosts, Size, Task, await_hosts
from distrib.launch.hosts.network import Ssh, UnreachableHostError, View
from distrib.launch.hosts.placement import Host, Slot
from distrib.launch.process.launcher import Console
from distrib.launch.process.liveness_file import Alive
from distrib.launch.process.signals import Signals

H0, H1, H2 = Host("h0", 2), Host("h1", 2), Host("h2", 4)
Survey = Callable[..., tuple[dict[Host, View], list[DistribError]]]


def console(say: Callable[[str], None]) -> Console:
    return Console(say, Alive(None), Signals())


class Network:
    """Which hosts answer when they are asked, time after time; the last answer stays."""

    def __init__(self, *answers: Sequence[Host]) -> None:
        self._answers = list(answers)
        self.asked: list[Sequence[Host]] = []

    def survey(
        self, hosts: Sequence[Host], ssh: Ssh, interface: str | None
    ) -> tuple[dict[Host, View], list[DistribError]]:
        self.asked.append(hosts)
        there = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        views = {host: View(host.name, "eth0", "h0", ()) for host in hosts if host in there}
        missing = [host for host in hosts if host not in there]
        return views, [UnreachableHostError(f"cannot reach {host.name}") for host in missing]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def gathering(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> Callable[..., Callable[[], list[str]]]:
    monkeypatch.setattr(allocation, "RETRY_SECONDS", 0.01)

    def prepare(network: Network, size: Size) -> Callable[[], list[str]]:
        monkeypatch.setattr(allocation, "survey", network.survey)
        task = Task(["true"], {})
        hosts = NamedHosts(lambda: [H0, H1, H2], size, Ssh(), None, task, console(said.append))
        return lambda: [slot.hostname for slot in hosts.gather().slots]

    return prepare


def test_a_host_that_is_missing_at_the_start_is_a_mistake(
    gathering: Callable[..., Callable[[], list[str]]],
) -> None:
    gather = gathering(Network([H0, H2]), Size(2, 8, 60))
    with pytest.raises(UnreachableHostError, match="cannot reach h1"):
        gather()


def test_a_lost_host_is_waited_for(
    gathering: Callable[..., Callable[[], list[str]]], said: list[str]
) -> None:
    gather = gathering(Network([H0, H1, H2], [H0], [H0, H2], [H0, H1, H2]), Size(8, 8, 60))
    assert gather() == ["h0"] * 2 + ["h1"] * 2 + ["h2"] * 4
    assert gather() == ["h0"] * 2 + ["h1"] * 2 + ["h2"] * 4
    assert said == [
        "waiting for hosts, 60 s at most: cannot reach h1; cannot reach h2",
        "waiting for hosts, 60 s at most: cannot reach h1",
    ]


def test_the_others_go_on_where_that_is_allowed_and_it_comes_back(
    gathering: Callable[..., Callable[[], list[str]]], said: list[str]
) -> None:
    network = Network([H0, H1, H2], [H0, H1])
    gather = gathering(network, Size(4, 8, 0.05))
    gather()
    assert gather() == ["h0"] * 2 + ["h1"] * 2
    assert said[-1] == "going on with 4 of 8 ranks, on h0, h1"
    network._answers = [[H0, H1, H2]]
    assert len(gather()) == 8


def test_hosts_with_room_enough_need_not_wait(
    gathering: Callable[..., Callable[[], list[str]]], said: list[str]
) -> None:
    gather = gathering(Network([H0, H1, H2], [H0, H2]), Size(6, 6, 600))
    gather()
    assert gather() == ["h0"] * 2 + ["h2"] * 4
    assert said == []


def test_too_few_are_left(gathering: Callable[..., Callable[[], list[str]]]) -> None:
    gather = gathering(Network([H0, H1, H2], [H0]), Size(4, 8, 0.02))
    gather()
    with pytest.raises(UnreachableHostError, match="cannot reach h1"):
        gather()


def test_a_signal_ends_the_waiting(said: list[str]) -> None:
    signals = Signals()
    threading.Timer(0.1, signals.note, [signal.SIGTERM]).start()
    with pytest.raises(Preempted):
        await_hosts(lambda: "h1", Console(said.append, Alive(None), signals), 600, 60)


def test_this_host_alone_is_always_there(tmp_path: Path) -> None:
    here = Host("localhost", 3)
    task = Task([sys.executable], {"PATH": "elsewhere"})
    hosts = NamedHosts(lambda: [here], Size(2, 2, 0), Ssh(), None, task, console(print))
    crew = hosts.gather()
    assert [slot.rank for slot in crew.slots] == [0, 1]
    assert hosts.spec(crew.slots[0]) == {
        "command": [sys.executable],
        "directory": os.getcwd(),
        "environment": {},
        "terminals": {},
        "lease": None,
    }


def test_other_hosts_get_the_environment_and_a_lease() -> None:
    task = Task(["true"], {"PATH": "/bin"})
    hosts = NamedHosts(lambda: [H1], Size(1, 1, 0), Ssh(), None, task, console(print))
    spec = hosts.spec(Slot(H1, 0, 1, 0, 1, 0, 1))
    assert (spec["environment"], spec["lease"]) == ({"PATH": "/bin"}, 60)


def test_hosts_are_named_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that hosts can be added to a job that runs."""
    size, task = Size(1, 99, 0), Task(["true"], {})
    network = Network([H0, H1, H2])
    named = [H0]
    monkeypatch.setattr(allocation, "survey", network.survey)
    hosts = NamedHosts(lambda: named, size, Ssh(), None, task, console(print))
    assert len(hosts.gather().slots) == 2
    named.append(H2)
    assert len(hosts.gather().slots) == 6
