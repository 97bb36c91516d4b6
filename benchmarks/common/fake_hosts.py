"""Hosts of a job with `--join` that exist as connections only; one process plays all of them.

They speak the protocol of `distrib.launch.hosts` with a real coordinator. Their ranks are sockets
that answer as a rank agent would, and train nothing.
"""

from __future__ import annotations

import json
import queue
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from distrib.launch.hosts.protocol import connect, receive, send
from distrib.launch.hosts.rank_agent import ERRORS, EXIT, HEARTBEAT, MARK, frame

CONNECTING_THREADS = 16
# Longer than any phase of a benchmark.
LIMIT_SECONDS = 900.0


@dataclass
class FakeHost:
    """A host that has joined.

    Attributes:
        name: Its name.
        slots: How many ranks it may have.
        control: For messages to and from the coordinator; `None` while it is not connected.
        ranks: The sockets of its ranks.
        code: What the coordinator has told it to end with.
    """

    name: str
    slots: int
    control: Connection | None = None
    connection: socket.socket | None = None
    ranks: list[socket.socket] = field(default_factory=list)
    code: int | None = None


class FakeHosts:
    """Plays hosts, one request after the other.

    Args:
        address: The coordinator's.
        count: How many hosts.
        slots: How many ranks each of them may have.

    Attributes:
        hosts: All of them.
        surveys: How many requests for a host's network have been answered.
        training: How many ranks were told what to run, and have not ended.
    """

    def __init__(self, address: tuple[str, int], count: int, slots: int) -> None:
        self._address = address
        self._selector = selectors.DefaultSelector()
        self._pool = ThreadPoolExecutor(CONNECTING_THREADS)
        self._done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._spec: dict[socket.socket, bytes] = {}
        self.hosts = [FakeHost(f"h{number}", slots) for number in range(1, count + 1)]
        self.surveys = self.training = 0

    def join(self, hosts: list[FakeHost]) -> None:
        """Connect hosts to the coordinator."""
        for host in hosts:
            hello = {"name": host.name, "slots": host.slots}
            self._connect(hello, lambda future, host=host: self._joined(host, future))

    def leave(self, host: FakeHost) -> None:
        """Lose a host, with its ranks."""
        assert host.control is not None
        assert host.connection is not None
        self._selector.unregister(host.control)
        host.control.close()
        host.connection.close()
        host.control = None
        for rank in host.ranks:
            self._close(rank)
        host.ranks = []

    def end_ranks(self, code: int, error: str = "") -> None:
        """End all ranks with an exit code, after they have written an error."""
        for host in self.hosts:
            for rank in host.ranks:
                written = frame(ERRORS, error.encode()) if error else b""
                rank.sendall(written + frame(EXIT, b"%d" % code))
                self._close(rank)
            host.ranks = []

    def train(self, seconds: float, interval: float) -> int:
        """Send heartbeats from all ranks; return how many were sent."""
        ranks = [rank for host in self.hosts for rank in host.ranks]
        sent, began = 0, time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            due = int(len(ranks) * now / interval)
            while sent < due:
                facts = {"phase": "training", "step": sent // len(ranks), "wait_seconds": now / 2}
                beat = json.dumps(facts).encode() + b"\n"
                ranks[sent % len(ranks)].sendall(frame(HEARTBEAT, beat))
                sent += 1
            self.serve(lambda: True, 0.01)
        return sent

    def serve(self, is_over: Callable[[], bool], timeout: float = 0.1) -> None:
        """Answer requests until a condition holds."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            for key, _ in self._selector.select(timeout):
                key.data()
            while not self._done.empty():
                self._done.get()()
            if is_over():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"the coordinator has not answered for {LIMIT_SECONDS:g} s")

    @property
    def is_over(self) -> bool:
        """Whether all hosts were told that the job has ended."""
        return all(host.code is not None for host in self.hosts)

    def _connect(self, hello: dict[str, Any], then: Callable[[Any], None]) -> None:
        def work() -> tuple[Connection, socket.socket]:
            while True:
                try:
                    return connect(self._address, b"", hello)
                except OSError:  # As a host agent, which tries again.
                    time.sleep(1.0)

        def done(future: Future[Any]) -> None:
            self._done.put(lambda: then(future.result()))

        self._pool.submit(work).add_done_callback(done)

    def _joined(self, host: FakeHost, connected: tuple[Connection, socket.socket]) -> None:
        host.control, host.connection = connected
        self._selector.register(host.control, selectors.EVENT_READ, lambda: self._handle(host))

    def _handle(self, host: FakeHost) -> None:
        assert host.control is not None
        message = receive(host.control)
        if "survey" in message:
            self.surveys += 1
            network = {
                "launcher": "127.0.0.1",
                "own": "127.0.0.1",
                "interfaces": {"lo": "127.0.0.1"},
            }
            ports = list(range(20000, 20000 + host.slots))
            send(host.control, {"number": message["number"], **network, "ports": ports})
        elif "start" in message:
            self._connect({"key": message["start"]}, lambda both: self._start(host, both))
        elif "end" in message:
            send(host.control, {"goodbye": True})
        elif "over" in message:
            host.code = int(message["over"])
            self._selector.unregister(host.control)
            host.control.close()

    def _start(self, host: FakeHost, connected: tuple[Connection, socket.socket]) -> None:
        control, rank = connected
        control.close()
        host.ranks.append(rank)
        self._spec[rank] = b""
        self._selector.register(rank, selectors.EVENT_READ, lambda: self._read_rank(host, rank))

    def _read_rank(self, host: FakeHost, rank: socket.socket) -> None:
        data = rank.recv(1 << 20)
        if not data:
            host.ranks.remove(rank)
            self._close(rank)
        elif rank in self._spec:
            if not data.endswith(b"\n"):
                return
            del self._spec[rank]
            self.training += 1
            rank.sendall(MARK)
        elif data.strip():  # A signal.
            rank.sendall(frame(EXIT, b"%d" % (128 + int(data.split()[0]))))
            host.ranks.remove(rank)
            self._close(rank)

    def _close(self, rank: socket.socket) -> None:
        self.training -= rank not in self._spec
        self._spec.pop(rank, None)
        self._selector.unregister(rank)
        rank.close()
