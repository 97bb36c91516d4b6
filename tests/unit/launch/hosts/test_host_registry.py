"""The registry alone, with real connections from this process."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection

import pytest

from distrib.launch.hosts.channel import ClosedChannel, SocketChannel
from distrib.launch.hosts.connected_host import ConnectedHost
from distrib.launch.hosts.host_registry import WELCOMING_THREADS, HostRegistry
from distrib.launch.hosts.placement import Host
from distrib.launch.hosts.protocol import connect, receive, send

SECONDS = 60
Join = Callable[..., tuple[object, socket.socket]]


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def registry(logged: list[str]) -> Iterator[HostRegistry]:
    registry = HostRegistry(0, b"", "h0", logged.append)
    yield registry
    registry.close(0)


@pytest.fixture
def join(registry: HostRegistry) -> Iterator[Join]:
    with ExitStack() as opened:

        def connected(**hello: object) -> tuple[object, socket.socket]:
            both = connect(registry._listener.getsockname(), b"", hello)
            for each in both:
                opened.enter_context(each)
            return both

        yield connected


def wait_until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_hosts_need_no_thread_each(registry: HostRegistry, join: Join) -> None:
    before = threading.active_count()
    hosts = [join(name=f"h{n}", slots=8) for n in range(1, 101)]
    wait_until(lambda: len(registry.available()) == 100)
    assert threading.active_count() <= before
    for control, _ in hosts:
        send(control, {"leave": True})
    wait_until(lambda: not registry.available())
    assert registry.take_stopping() != []


def test_all_hosts_are_asked_before_any_answer_is_awaited(
    registry: HostRegistry, join: Join
) -> None:
    controls = [join(name=f"h{n}", slots=8)[0] for n in range(1, 11)]
    wait_until(lambda: len(registry.available()) == 10)
    hosts = registry.available()
    numbers = [host.request({"survey": True}) for host in hosts]
    for control in reversed(controls[1:]):
        send(control, {"number": receive(control)["number"]})
    deadline = time.monotonic() + SECONDS
    answers = [host.answer(n, deadline) for host, n in zip(hosts[1:], numbers[1:], strict=True)]
    assert [answer and answer["number"] for answer in answers] == numbers[1:]
    assert hosts[0].answer(numbers[0], time.monotonic()) is None


def test_an_agent_is_given_up_only_when_no_other_arrives(
    registry: HostRegistry, join: Join
) -> None:
    control, _ = join(name="h1", slots=2)
    wait_until(registry.available)
    first, second = (registry.request_agent("h1", 1) for _ in range(2))
    keys = [receive(control)["start"] for _ in range(2)]
    long_ago = time.monotonic() - 1000
    join(key=keys[0])
    wait_until(lambda: registry._last_arrival)
    assert isinstance(registry.channel(first, long_ago), SocketChannel)
    threading.Timer(0.2, lambda: join(key=keys[1])).start()
    assert isinstance(registry.channel(second, long_ago), SocketChannel)


def test_an_agent_of_a_lost_host_is_not_waited_for(registry: HostRegistry) -> None:
    request = registry.request_agent("h9", 1)
    assert request.sockets.get(timeout=0) is None
    request.sockets.put(None)
    assert isinstance(registry.channel(request, time.monotonic()), ClosedChannel)


def test_an_agent_that_is_refused_is_not_waited_for(registry: HostRegistry, join: Join) -> None:
    control, _ = join(name="h1", slots=1)
    wait_until(registry.available)
    request = registry.request_agent("h1", None)
    send(control, {"refused": receive(control)["start"]})
    send(control, {"refused": "of an earlier request"})
    assert request.sockets.get() is None


def test_a_spare_becomes_a_rank_only_on_the_same_connection(
    registry: HostRegistry, join: Join
) -> None:
    control, _ = join(name="h1", slots=1)
    wait_until(registry.available)
    request, lost = (registry.request_agent(name, None) for name in ("h1", "h2"))
    assert receive(control) == {"start": request.key, "attempt": None}
    assert registry.announce_rank(request, 2)
    assert receive(control) == {"use": request.key, "attempt": 2}
    assert not registry.announce_rank(lost, 2)
    before = registry.available()
    join(name="h1", slots=1)
    wait_until(lambda: registry.available() != before)
    assert not registry.announce_rank(request, 3)


def test_the_registry_survives_a_lack_of_file_descriptors(
    registry: HostRegistry, join: Join, logged: list[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        lowest_free = os.dup(client.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            client.connect(registry._listener.getsockname())
            wait_until(lambda: logged)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert logged == ["--join: cannot accept more connections: Too many open files."]
    join(name="h1", slots=1)
    wait_until(registry.available)


def test_a_host_with_the_name_of_the_coordinator(
    registry: HostRegistry, join: Join, logged: list[str]
) -> None:
    for _ in range(2):
        control, _ = join(name="h0", slots=1)
        with pytest.raises(ConnectionError):
            receive(control)
    assert logged == [
        "--join: the host at 127.0.0.1 is named h0, like this one. Give each host a host name of "
        "its own."
    ]
    assert registry.available() == []


def test_a_host_that_joins_twice_takes_its_own_place(registry: HostRegistry, join: Join) -> None:
    (_, first), _ = (join(name="h1", slots=slots) for slots in (1, 4))
    wait_until(lambda: [host.host.slots for host in registry.available()] == [4])
    first.shutdown(socket.SHUT_RDWR)  # That it is gone is noticed later.
    wait_until(lambda: len(registry._connections) == 1)
    assert [host.host.slots for host in registry.available()] == [4]


def test_two_hosts_with_one_name(
    registry: HostRegistry, join: Join, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    join(name="h1", slots=1)
    wait_until(registry.available)
    create = socket.create_connection

    def elsewhere(address: tuple[str, int], timeout: float) -> socket.socket:
        return create(address, timeout, source_address=("127.0.0.2", 0))

    monkeypatch.setattr(socket, "create_connection", elsewhere)
    join(name="h1", slots=1)
    wait_until(lambda: logged)
    assert logged[0].startswith(
        "--join: h1 has joined from 127.0.0.2, in place of the one at 127.0.0.1. If those are two"
    )


def test_a_host_of_another_version_is_named_and_no_thread_lost(
    registry: HostRegistry, join: Join, logged: list[str]
) -> None:
    for _ in range(2 * WELCOMING_THREADS):
        join(hostname="h1")
    join(name="h2", slots=1)
    wait_until(lambda: len(registry.available()) == 1)
    wait_until(lambda: logged)
    assert logged == ["--join: 127.0.0.1 runs another version of distrib."]


def test_a_host_that_registers_when_the_job_has_ended(registry: HostRegistry) -> None:
    registry.close(0)
    wait_until(lambda: registry._epoll.closed)
    ours, theirs = socket.socketpair()
    with ours, theirs, Connection(os.dup(ours.fileno())) as control:
        assert not registry._register(ConnectedHost(Host("h1", 1), control, ours, "127.0.0.1"))
    registry._listener = socket.create_server(("", 0))  # The fixture closes it again.
