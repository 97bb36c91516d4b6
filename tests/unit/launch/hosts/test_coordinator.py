"""A job with `--join`: coordinator and host agents, each in a thread, on one machine.

The rank agents and ranks that they start are real processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrib.errors import ConfigurationError
from distrib.launch.hosts import coordinator
from distrib.launch.hosts.coordinator import Coordinator
from distrib.launch.hosts.host_agent import HostAgent
from distrib.launch.hosts.host_pool import JobSize
from distrib.launch.hosts.host_registry import HostRegistry
from distrib.launch.hosts.network import UnreachableHostError
from distrib.launch.hosts.placement import Host, place_ranks
from distrib.launch.hosts.task import Task
from distrib.launch.process.launcher_context import LauncherContext
from distrib.launch.process.liveness_file import LivenessFile
from distrib.launch.process.signals import Signals
from distrib.launch.process.terminal import print_message
from distrib.launch.run import escalation, spares
from distrib.launch.run.hang_detector import HangTimeouts
from distrib.launch.run.job import Job, JobOptions

Capture = pytest.CaptureFixture[str]
ECHO = ["sh", "-c", 'echo "$TF_CONFIG" > $0/$$', "folder"]
SECONDS = 60
TOKEN = b"secret"


class Process:
    """Work that runs in a thread as it would in a process of its own."""

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
    """Starts a coordinator and host agents that run one command."""

    def __init__(self, port: int) -> None:
        self.port = port

    def coordinate(
        self,
        command: list[str],
        min_ranks: int,
        max_ranks: int,
        timeout: float = SECONDS,
        slots: int = 1,
        grace: float = SECONDS,
        token: bytes = TOKEN,
    ) -> Process:
        def work(signals: Signals) -> int:
            own = Host("h0", slots)
            size = JobSize(min_ranks, max_ranks, timeout)
            context = LauncherContext(print, LivenessFile(None), signals)
            task = Task(command, {})
            pool = Coordinator(self.port, token, own, size, None, task, context)
            options = JobOptions(
                "multiworker", None, HangTimeouts(), 5, grace, None, task.is_script
            )
            return Job(pool, context, options).run()

        return Process(work)

    def join(
        self,
        name: str,
        command: list[str],
        slots: int = 1,
        timeout: float = SECONDS,
        linger: bool = False,
        token: bytes = TOKEN,
    ) -> Process:
        def work(signals: Signals) -> int:
            address = ("127.0.0.1", self.port)
            task = Task(command, {})
            own = Host(name, slots)
            context = LauncherContext(print_message, LivenessFile(None), signals)
            agent = HostAgent(address, token, own, task, timeout, 20, linger, context)
            return agent.serve()

        return Process(work)


@pytest.fixture
def cluster() -> Cluster:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Cluster(port)


def tasks(folder: Path) -> list[tuple[int, int]]:
    """Each rank and the number of ranks, from the TF_CONFIG of each."""
    configs = [json.loads(path.read_text()) for path in folder.iterdir()]
    return sorted((one["task"]["index"], len(one["cluster"]["worker"])) for one in configs)


def wait_until(done: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def echo(folder: Path) -> list[str]:
    return [*ECHO[:3], str(folder)]


def waits(folder: Path) -> list[str]:
    """A command that writes a file with its pid, then waits for SIGTERM, and saves."""
    script = "trap 'exit 75' TERM; echo $$ > $0/$$; sleep 600 & wait"
    return ["sh", "-c", script, str(folder)]


def test_hosts_join_in_any_order_and_end_with_the_job(cluster: Cluster, tmp_path: Path) -> None:
    early = cluster.join("h2", echo(tmp_path), slots=2)
    chief = cluster.coordinate(echo(tmp_path), 4, 4)
    late = cluster.join("h1", echo(tmp_path))
    assert [one.end() for one in (chief, early, late)] == [0, 0, 0]
    assert tasks(tmp_path) == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_all_hosts_end_with_the_exit_code_of_the_failure(cluster: Cluster) -> None:
    command = ["sh", "-c", "exit 78"]
    chief = cluster.coordinate(command, 2, 2)
    agent = cluster.join("h1", command)
    assert (chief.end(), agent.end()) == (78, 78)


def test_a_host_never_runs_a_command_that_it_is_sent(cluster: Cluster, tmp_path: Path) -> None:
    chief = cluster.coordinate(["true"], 2, 2)
    agent = cluster.join("h1", echo(tmp_path))
    assert (chief.end(), agent.end()) == (0, 0)
    assert tasks(tmp_path) == [(1, 2)]


def test_hosts_that_do_not_join(cluster: Cluster) -> None:
    chief = cluster.coordinate(["true"], 2, 2, timeout=0.5)
    assert chief.end() is None
    assert isinstance(chief.error, UnreachableHostError)
    assert "after 0.5 s 1 of at least 2 ranks have a place" in str(chief.error)
    assert chief.error.exit_code == 76


def test_the_job_runs_with_fewer_hosts_if_allowed(cluster: Cluster, tmp_path: Path) -> None:
    chief = cluster.coordinate(echo(tmp_path), 2, 3, timeout=6)
    agent = cluster.join("h1", echo(tmp_path))
    assert (chief.end(), agent.end()) == (0, 0)
    assert tasks(tmp_path) == [(0, 2), (1, 2)]


def test_a_coordinator_that_does_not_start(
    cluster: Cluster, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distrib.launch.hosts.host_agent.QUIET_SECONDS", 0.0)
    agent = cluster.join("h1", ["true"], timeout=0.5)
    assert agent.end() == 76
    err = capfd.readouterr().err
    assert "waiting for 127.0.0.1" in err
    assert "has not answered for 0.5 s" in err


def test_a_host_that_is_asked_to_stop_ends_and_joins_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Real ranks would agree to stop; these do not communicate.
    chief = cluster.coordinate(waits(tmp_path), 2, 2, grace=0.5)
    agent = cluster.join("h1", waits(tmp_path))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    agent.signals.record(signal.SIGTERM)
    assert agent.end() == 75
    again = cluster.join("h1", waits(tmp_path))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 4)
    chief.signals.record(signal.SIGTERM)
    assert chief.end() == 75
    again.signals.record(
        signal.SIGTERM
    )  # The coordinator did not end it: another one may replace it.
    assert again.end() == 75


def test_a_host_whose_ranks_do_not_save_in_time_fails(
    cluster: Cluster, tmp_path: Path, capfd: Capture
) -> None:
    script = "trap '' TERM; echo $$ > $0/$$; while :; do sleep 1; done"
    command = ["sh", "-c", script, str(tmp_path)]
    chief = cluster.coordinate(command, 1, 2, timeout=6, grace=1)
    agent = cluster.join("h1", command)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    agent.signals.record(signal.SIGTERM)
    assert agent.end() == 76
    assert "the ranks did not end in time" in capfd.readouterr().err
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3)  # The coordinator continues alone.
    for _ in range(2):  # Ctrl-C twice.
        chief.signals.record(signal.SIGINT)
    chief.end()


def test_ranks_end_with_the_coordinator_and_start_with_its_replacement(
    cluster: Cluster, tmp_path: Path
) -> None:
    chief = cluster.coordinate(waits(tmp_path), 2, 2)
    agent = cluster.join("h1", waits(tmp_path))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    chief.signals.record(signal.SIGTERM)
    assert chief.end() == 75
    other = cluster.coordinate(waits(tmp_path), 2, 2)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 4)
    other.signals.record(signal.SIGTERM)
    assert other.end() == 75
    agent.signals.record(signal.SIGTERM)
    assert agent.end() == 75


def test_hosts_wait_for_the_replacement_of_a_coordinator_that_died_before_its_end(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its replacement would wait in vain for hosts that have finished."""
    with monkeypatch.context() as patch:
        send = HostRegistry._send

        def die(self: HostRegistry, control: Any, message: Any) -> bool:
            return "over" in message or send(self, control, message)

        patch.setattr(HostRegistry, "_send", die)
        chief = cluster.coordinate(echo(tmp_path), 2, 2)
        agent = cluster.join("h1", echo(tmp_path))
        chief.end()
    again = cluster.coordinate(echo(tmp_path), 2, 2)
    assert (again.end(), agent.end()) == (0, 0)
    assert tasks(tmp_path) == [(0, 2)] * 2 + [(1, 2)] * 2


def test_a_host_may_linger_for_the_replacement_of_a_coordinator(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distrib.launch.hosts.host_agent.LINGER_SECONDS", 0.1)
    chief = cluster.coordinate(echo(tmp_path), 2, 2)
    agent = cluster.join("h1", echo(tmp_path), timeout=2.0, linger=True)
    assert chief.end() == 0
    time.sleep(2.5)  # The timeout is for the start only.
    replacement = cluster.coordinate(echo(tmp_path), 2, 2)
    assert replacement.end() == 0
    assert tasks(tmp_path) == [(0, 2)] * 2 + [(1, 2)] * 2
    assert agent.code is None
    agent.signals.record(signal.SIGTERM)
    assert agent.end() == 75  # Not 0: a third coordinator might need it.


def test_a_host_does_not_linger_when_the_job_has_failed(cluster: Cluster) -> None:
    command = ["sh", "-c", "exit 78"]
    chief = cluster.coordinate(command, 2, 2)
    agent = cluster.join("h1", command, linger=True)
    assert (chief.end(), agent.end()) == (78, 78)


def test_a_killed_rank_is_restarted(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escalation, "NOTICE_SECONDS", 0.2)
    script = "echo $$ > $0/$$; [ $(ls $0 | wc -l) -gt 2 ] || exec sleep 600"
    command = ["sh", "-c", script, str(tmp_path)]
    chief = cluster.coordinate(command, 2, 2)
    agent = cluster.join("h1", command)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    os.kill(int(next(tmp_path.iterdir()).name), signal.SIGKILL)
    assert (chief.end(), agent.end()) == (0, 0)


def test_hosts_with_another_token_are_rejected(cluster: Cluster, capfd: Capture) -> None:
    chief = cluster.coordinate(["true"], 2, 2, timeout=5, token=b"one")
    agent = cluster.join("h1", ["true"], timeout=60, token=b"another")
    assert agent.end() is None
    assert isinstance(agent.error, ConfigurationError)
    assert "DISTRIB_JOIN_TOKEN" in str(agent.error)
    chief.end()
    assert isinstance(chief.error, UnreachableHostError)
    assert "127.0.0.1 does not know the token" in capfd.readouterr().out


@pytest.mark.parametrize(("token", "address"), [(b"", "127.0.0.1"), (TOKEN, "0.0.0.0")])
def test_without_a_token_the_registry_listens_on_loopback_only(
    cluster: Cluster, token: bytes, address: str
) -> None:
    registry = HostRegistry(cluster.port, token, "h0", print)
    assert registry._listener.getsockname()[0] == address
    registry.close(None)


def test_on_loopback_a_job_needs_no_token(cluster: Cluster) -> None:
    chief = cluster.coordinate(["true"], 2, 2, token=b"")
    agent = cluster.join("h1", ["true"], token=b"")
    assert (chief.end(), agent.end()) == (0, 0)


def test_other_clients_do_no_harm(cluster: Cluster, tmp_path: Path) -> None:
    chief = cluster.coordinate(echo(tmp_path), 2, 2)
    wait_until(lambda: knock(cluster.port, b"GET / HTTP/1.0\r\n\r\n"))
    assert knock(cluster.port, b"")
    assert knock(cluster.port, b"\xff" * 100_000)
    agent = cluster.join("h1", echo(tmp_path))
    assert (chief.end(), agent.end()) == (0, 0)


def knock(port: int, data: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(data)
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


TRAINS = """
import faulthandler, json, os, sys, time
from pathlib import Path
from library_of_multiworker import level
from distrib.heartbeat import TRAINING, heartbeat
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
was_spare = "DISTRIB_SPARE" in Path("/proc/self/environ").read_text()
facts = [was_spare, rank, level, faulthandler.is_enabled(), sys.stdout.write_through]
Path(sys.argv[1], str(os.getpid())).write_text(json.dumps(facts))
if was_spare:
    sys.exit(0)
heartbeat.enter(TRAINING)
time.sleep(600)
"""


def test_spares_on_hosts_that_have_joined(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escalation, "NOTICE_SECONDS", 0.3)
    monkeypatch.setattr(spares, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(spares, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(spares, "MODULES", {})
    monkeypatch.setattr(spares, "BACKENDS", "library_of_")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    imported, pids = tmp_path / "imported", tmp_path / "pids"
    pids.mkdir()
    level = "import os; level = os.environ.get('TF_CPP_MIN_LOG_LEVEL')"
    library = f"{level}; open({str(imported)!r}, 'a').write('.')"
    (tmp_path / "library_of_multiworker.py").write_text(library)
    (tmp_path / "train.py").write_text(TRAINS)
    command = [sys.executable, str(tmp_path / "train.py"), str(pids)]
    chief = cluster.coordinate(command, 2, 2)
    agent = cluster.join("h1", command)
    wait_until(lambda: imported.exists() and len(imported.read_text()) >= 4)
    os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)
    assert (chief.end(), agent.end()) == (0, 0)
    # What an interpreter reads at its start, and TensorFlow at its import.
    ranks = [[rank, level, True, True] for rank, level in enumerate([None, "2"])]
    attempts = [[was_spare, *rank] for was_spare in (False, True) for rank in ranks]
    assert sorted(json.loads(path.read_text()) for path in pids.iterdir()) == attempts


def test_the_files_of_a_spare_are_counted_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(coordinator, "reserve_files", counts.append)
    own, task = Host("h0", 2), Task(["true"], {})
    context = LauncherContext(print, LivenessFile(None), Signals())
    pool = Coordinator(cluster.port, TOKEN, own, JobSize(2, 2, SECONDS), None, task, context)
    first, second = place_ranks([own], 2)
    spare = pool.connect_spare(second)
    channels = pool.connect([first, second], {second: spare})
    assert channels[1] is spare
    assert counts == [3, 4]
    for channel in channels:
        channel.abort()
        channel.close()
    pool.shut_down(0)


def test_a_spare_of_a_host_that_has_connected_anew(cluster: Cluster, tmp_path: Path) -> None:
    """A host may be started again so fast that its old connections are not known to be lost."""
    (tmp_path / "train.py").write_text("")
    command = [sys.executable, str(tmp_path / "train.py")]
    context = LauncherContext(print, LivenessFile(None), Signals())
    size = JobSize(2, 2, SECONDS)
    pool = Coordinator(cluster.port, TOKEN, Host("h0", 1), size, None, Task(command, {}), context)
    agent = cluster.join("h1", command)
    placement = pool.allocate().placements[1]
    spare, used = (pool.connect_spare(placement) for _ in range(2))
    assert pool.connect([placement], {placement: used}) == [used]
    (before,) = pool._registry.available()
    before.disconnect()
    wait_until(lambda: pool._registry.available() not in ([], [before]))
    (channel,) = pool.connect([placement], {placement: spare})
    assert channel is not spare
    assert channel.is_open()
    pool.shut_down(0)
    assert agent.end() == 0
