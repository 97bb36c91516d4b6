"""A job whose hosts come by themselves: coordinator and members, each in a thread, on one machine.

What they start are real keepers and processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrib.errors import ConfigurationError
from distrib.launch.hosts import coordinator
from distrib.launch.hosts.allocation import Size, Task
from distrib.launch.hosts.coordinator import Coordinator
from distrib.launch.hosts.host_agent import Member
from distrib.launch.hosts.network import UnreachableHostError
from distrib.launch.hosts.placement import Host
from distrib.launch.process.launcher import Console
from distrib.launch.process.liveness_file import Alive
from distrib.launch.process.signals import Signals
from distrib.launch.process.terminal import tell
from distrib.launch.run import supervisor
from distrib.launch.run.job import Job, Plan
from distrib.launch.run.liveness import Limits

Capture = pytest.CaptureFixture[str]
ECHO = ["sh", "-c", 'echo "$TF_CONFIG" > $0/$$', "folder"]
SECONDS = 60


class Process:
    """Something that runs in a thread as it would in a process of its own."""

    def __init__(self, work: Callable[[Signals], int]) -> None:
        self.signals = Signals()
        self.code: int | None = None
        self.error: Exception | None = None

        def run() -> None:
            try:
                self.code = work(self.signals)
            except Exception as error:
                self.error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def end(self) -> int | None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.code


class Cluster:
    """Starts coordinator and members that run one command."""

    def __init__(self, port: int) -> None:
        self.port = port

    def coordinate(
        self,
        command: list[str],
        least: int,
        most: int,
        patience: float = SECONDS,
        slots: int = 1,
        grace: float = SECONDS,
    ) -> Process:
        def work(signals: Signals) -> int:
            own = Host("h0", slots)
            size = Size(least, most, patience)
            console = Console(print, Alive(None), signals)
            fleet = Coordinator(self.port, own, size, None, Task(command, {}), console)
            plan = Plan("multiworker", None, Limits(), 5, grace, None)
            return Job(fleet, console, plan).run()

        return Process(work)

    def join(
        self,
        name: str,
        command: list[str],
        slots: int = 1,
        patience: float = SECONDS,
        linger: bool = False,
    ) -> Process:
        def work(signals: Signals) -> int:
            address = ("127.0.0.1", self.port)
            task = Task(command, {})
            own = Host(name, slots)
            console = Console(tell, Alive(None), signals)
            return Member(address, own, task, patience, 20, linger, console).serve()

        return Process(work)


@pytest.fixture
def cluster() -> Cluster:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Cluster(port)


def tasks(folder: Path) -> list[tuple[int, int]]:
    """Each rank and the number of ranks, as the processes were told."""
    told = [json.loads(path.read_text()) for path in folder.iterdir()]
    return sorted((one["task"]["index"], len(one["cluster"]["worker"])) for one in told)


def wait_until(done: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def echo(folder: Path) -> list[str]:
    return [*ECHO[:3], str(folder)]


def waits(folder: Path) -> list[str]:
    """A command that says where it is, then waits to be asked to stop, and saves."""
    script = "trap 'exit 75' TERM; echo $$ > $0/$$; sleep 600 & wait"
    return ["sh", "-c", script, str(folder)]


def test_all_come_in_any_order_and_all_learn_the_end(cluster: Cluster, tmp_path: Path) -> None:
    early = cluster.join("h2", echo(tmp_path), slots=2)
    chief = cluster.coordinate(echo(tmp_path), 4, 4)
    late = cluster.join("h1", echo(tmp_path))
    assert [one.end() for one in (chief, early, late)] == [0, 0, 0]
    assert tasks(tmp_path) == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_a_failure_is_every_hosts_end(cluster: Cluster) -> None:
    command = ["sh", "-c", "exit 78"]
    chief = cluster.coordinate(command, 2, 2)
    member = cluster.join("h1", command)
    assert (chief.end(), member.end()) == (78, 78)


def test_what_a_member_is_sent_is_never_run(cluster: Cluster, tmp_path: Path) -> None:
    chief = cluster.coordinate(["true"], 2, 2)
    member = cluster.join("h1", echo(tmp_path))
    assert (chief.end(), member.end()) == (0, 0)
    assert tasks(tmp_path) == [(1, 2)]


def test_hosts_that_do_not_come(cluster: Cluster) -> None:
    chief = cluster.coordinate(["true"], 2, 2, patience=0.5)
    assert chief.end() is None
    assert isinstance(chief.error, UnreachableHostError)
    assert "after 0.5 s 1 of at least 2 ranks have a place" in str(chief.error)
    assert chief.error.exit_code == 76


def test_with_fewer_hosts_if_that_is_allowed(cluster: Cluster, tmp_path: Path) -> None:
    chief = cluster.coordinate(echo(tmp_path), 2, 3, patience=6)
    member = cluster.join("h1", echo(tmp_path))
    assert (chief.end(), member.end()) == (0, 0)
    assert tasks(tmp_path) == [(0, 2), (1, 2)]


def test_a_coordinator_that_does_not_come(
    cluster: Cluster, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distrib.launch.hosts.host_agent.QUIET_SECONDS", 0.0)
    member = cluster.join("h1", ["true"], patience=0.5)
    assert member.end() == 76
    err = capfd.readouterr().err
    assert "waiting for 127.0.0.1" in err
    assert "has not answered for 0.5 s" in err


def test_a_member_that_is_asked_to_stop_leaves_and_comes_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Ranks would agree to save all together; these do not know each other.
    chief = cluster.coordinate(waits(tmp_path), 2, 2, grace=0.5)
    member = cluster.join("h1", waits(tmp_path))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    member.signals.note(signal.SIGTERM)
    assert member.end() == 75
    again = cluster.join("h1", waits(tmp_path))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 4)
    chief.signals.note(signal.SIGTERM)
    assert chief.end() == 75
    again.signals.note(signal.SIGTERM)  # Nobody has told it: another coordinator may come.
    assert again.end() == 75


def test_a_member_that_does_not_save_in_time_is_no_success(
    cluster: Cluster, tmp_path: Path, capfd: Capture
) -> None:
    script = "trap '' TERM; echo $$ > $0/$$; while :; do sleep 1; done"
    command = ["sh", "-c", script, str(tmp_path)]
    chief = cluster.coordinate(command, 1, 2, patience=6, grace=1)
    member = cluster.join("h1", command)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    member.signals.note(signal.SIGTERM)
    assert member.end() == 76
    assert "the ranks did not end in time" in capfd.readouterr().err
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3)  # It goes on alone.
    for _ in range(2):  # Twice Ctrl-C.
        chief.signals.note(signal.SIGINT)
    chief.end()


def test_ranks_end_with_the_coordinator_and_begin_with_the_next(
    cluster: Cluster, tmp_path: Path
) -> None:
    chief = cluster.coordinate(waits(tmp_path), 2, 2)
    member = cluster.join("h1", waits(tmp_path))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    chief.signals.note(signal.SIGTERM)
    assert chief.end() == 75
    other = cluster.coordinate(waits(tmp_path), 2, 2)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 4)
    other.signals.note(signal.SIGTERM)
    assert other.end() == 75
    member.signals.note(signal.SIGTERM)
    assert member.end() == 75


def test_a_coordinator_that_dies_before_its_end_is_waited_for(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its successor would wait in vain for members that have finished."""
    with monkeypatch.context() as patch:
        send = Coordinator._send

        def die(self: Coordinator, channel: Any, message: Any) -> None:
            if "over" not in message:
                send(self, channel, message)

        patch.setattr(Coordinator, "_send", die)
        chief = cluster.coordinate(echo(tmp_path), 2, 2)
        member = cluster.join("h1", echo(tmp_path))
        chief.end()
    again = cluster.coordinate(echo(tmp_path), 2, 2)
    assert (again.end(), member.end()) == (0, 0)
    assert tasks(tmp_path) == [(0, 2)] * 2 + [(1, 2)] * 2


def test_a_member_may_stay_for_the_successor_of_a_coordinator_whose_end_nobody_saw(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distrib.launch.hosts.host_agent.LINGER_SECONDS", 0.1)
    chief = cluster.coordinate(echo(tmp_path), 2, 2)
    member = cluster.join("h1", echo(tmp_path), patience=2.0, linger=True)
    assert chief.end() == 0
    time.sleep(2.5)  # Its patience was for the start.
    successor = cluster.coordinate(echo(tmp_path), 2, 2)
    assert successor.end() == 0
    assert tasks(tmp_path) == [(0, 2)] * 2 + [(1, 2)] * 2
    assert member.code is None
    member.signals.note(signal.SIGTERM)
    assert member.end() == 75  # Else it would be missed if a third one had to be waited for.


def test_a_member_does_not_stay_when_the_job_has_failed(cluster: Cluster) -> None:
    command = ["sh", "-c", "exit 78"]
    chief = cluster.coordinate(command, 2, 2)
    member = cluster.join("h1", command, linger=True)
    assert (chief.end(), member.end()) == (78, 78)


def test_a_killed_rank_is_started_again(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "NOTICE_SECONDS", 0.2)
    script = "echo $$ > $0/$$; [ $(ls $0 | wc -l) -gt 2 ] || exec sleep 600"
    command = ["sh", "-c", script, str(tmp_path)]
    chief = cluster.coordinate(command, 2, 2)
    member = cluster.join("h1", command)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    os.kill(int(next(tmp_path.iterdir()).name), signal.SIGKILL)
    assert (chief.end(), member.end()) == (0, 0)


def test_the_token(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    chief = cluster.coordinate(["true"], 2, 2, patience=5)
    monkeypatch.setattr(coordinator, "token", lambda: b"one")
    monkeypatch.setattr("distrib.launch.hosts.host_agent.token", lambda: b"another")
    member = cluster.join("h1", ["true"], patience=60)
    assert member.end() is None
    assert isinstance(member.error, ConfigurationError)
    assert "DISTRIB_JOIN_TOKEN" in str(member.error)
    chief.end()
    assert isinstance(chief.error, UnreachableHostError)
    assert "127.0.0.1 does not know the token" in capfd.readouterr().out


def test_strangers_do_no_harm(cluster: Cluster, tmp_path: Path) -> None:
    chief = cluster.coordinate(echo(tmp_path), 2, 2)
    wait_until(lambda: knock(cluster.port, b"GET / HTTP/1.0\r\n\r\n"))
    assert knock(cluster.port, b"")
    assert knock(cluster.port, b"\xff" * 100_000)
    member = cluster.join("h1", echo(tmp_path))
    assert (chief.end(), member.end()) == (0, 0)


def knock(port: int, data: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(data)
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def test_a_port_that_is_taken(cluster: Cluster) -> None:
    with socket.create_server(("", cluster.port)):
        chief = cluster.coordinate(["true"], 1, 1)
        chief.end()
    assert isinstance(chief.error, ConfigurationError)
    assert f"cannot listen on port {cluster.port} of h0" in str(chief.error)
