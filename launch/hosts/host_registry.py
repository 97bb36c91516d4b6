"""The hosts that are connected to the coordinator of `distrib run --join`.

Each host agent holds one control connection, by which it registers and gets requests. For each of
its ranks in an attempt it opens one more connection, with the key that the request named, and
starts a rank agent with that connection as its input and output.

There may be a thousand hosts, so one thread reads from all of them, and a few authenticate.
"""

from __future__ import annotations

import errno
import os
import queue
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from distrib.errors import ConfigurationError

from .channel import Channel, ClosedChannel, SocketChannel
from .connected_host import ConnectedHost
from .names import natural_order
from .network import LOOPBACK
from .placement import Host
from .protocol import (
    ANSWER_SECONDS,
    TOKEN_VARIABLE,
    receive,
    set_keepalive,
    set_read_timeout,
)

# Threads that authenticate new connections. A client that is silent keeps one for seconds.
WELCOMING_THREADS = 16
BACKLOG = 4096  # A thousand hosts connect at once; Linux caps this at net.core.somaxconn.
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class HostRegistry:
    """Listens for host agents and keeps track of those that are connected.

    Args:
        port: Where to listen.
        token: The secret that host agents must know. If empty, only loopback is listened on.
        name: This host's, for messages.
        log: Shows the user a message.

    Attributes:
        goodbyes: Names of the hosts that know that the job has ended.

    Raises:
        ConfigurationError: If the port is taken.
    """

    def __init__(self, port: int, token: bytes, name: str, log: Callable[[str], None]) -> None:
        self._token = token
        self._name = name
        self._log = log
        self._lock = threading.Lock()
        self._hosts: dict[str, ConnectedHost] = {}
        self._connections: dict[int, ConnectedHost] = {}  # By file descriptor.
        self._stopping: list[str] = []
        self._expected: dict[str, queue.SimpleQueue[socket.socket | None]] = {}
        self._last_arrival = 0.0  # Of a rank agent.
        self._exit_code: int | None = None
        self._is_closed = False
        self._reported: set[str] = set()
        self.goodbyes: set[str] = set()
        try:
            address = ("" if token else LOOPBACK, port)
            self._listener = socket.create_server(address, backlog=BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"--join: cannot listen on port {port} of {name}: {error}. Is another job running "
                "here? Then give this one a port of its own."
            ) from error
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._new: queue.SimpleQueue[tuple[socket.socket, str] | None] = queue.SimpleQueue()
        for work in (self._read, *[self._welcome_all] * WELCOMING_THREADS):
            threading.Thread(target=work, daemon=True).start()

    def available(self) -> list[ConnectedHost]:
        """Return the connected hosts that will not stop, in the natural order of their names."""
        hosts = [host for host in self._connected() if not host.is_stopping]
        return sorted(hosts, key=lambda host: natural_order(host.host.name))

    def take_stopping(self) -> list[str]:
        """Return the names of hosts that announced since the last call that they will stop."""
        with self._lock:
            names, self._stopping = self._stopping, []
        return names

    def request_agent(self, hostname: str, attempt: int | None) -> AgentRequest:
        """Have a host start one rank agent.

        Args:
            hostname: Which host; one that is not connected any more starts none.
            attempt: Number of the attempt; the host ends the ranks of the one before. `None` for
                the agent of a spare.
        """
        key, sockets = secrets.token_hex(16), queue.SimpleQueue[socket.socket | None]()
        with self._lock:
            self._expected[key] = sockets
            host = self._hosts.get(hostname)
        if host is None or not self._send(host, {"start": key, "attempt": attempt}):
            sockets.put(None)
        return AgentRequest(key, sockets, host)

    def announce_rank(self, request: AgentRequest, attempt: int) -> bool:
        """Tell a host that one of its spares becomes a rank, and return whether it can.

        It cannot if the host has connected anew since: its spares have ended with the connection
        before, or with the host itself, even if that is not noticed yet.

        Args:
            request: For the agent of the spare.
            attempt: Number of the attempt.
        """
        host = request.host
        if host is None:
            return False
        with self._lock:
            is_connected = self._hosts.get(host.host.name) is host
        return is_connected and self._send(host, {"use": request.key, "attempt": attempt})

    def channel(self, request: AgentRequest, began: float) -> Channel:
        """Return the channel to a requested rank agent; a closed one if it was not started.

        Thousands of agents take a while to connect. So one is given up when for `ANSWER_SECONDS`
        none at all has connected.

        Args:
            request: As `request_agent` returned it.
            began: When all agents had been requested, in `time.monotonic()` seconds.
        """
        connection: socket.socket | None = None
        while (left := max(began, self._last_arrival) + ANSWER_SECONDS - time.monotonic()) > 0:
            with suppress(queue.Empty):
                connection = request.sockets.get(timeout=left)
                break
        with self._lock:
            del self._expected[request.key]
        return ClosedChannel() if connection is None else SocketChannel(connection)

    def forget(self, host: ConnectedHost) -> None:
        """Drop a host whose connection is lost, unless it has already connected again."""
        with self._lock:
            if self._hosts.get(host.host.name) is host:
                del self._hosts[host.host.name]

    def announce_end(self, exit_code: int) -> None:
        """Tell all hosts that the job has ended, now or as soon as they connect again."""
        with self._lock:
            self._exit_code = exit_code
        for host in self._connected():
            self._send(host, {"end": exit_code})

    def close(self, exit_code: int | None) -> None:
        """Stop listening and disconnect all hosts.

        Args:
            exit_code: What the hosts end with; `None` if they are to wait for a new coordinator.
        """
        for host in self._connected():
            if exit_code is not None:
                self._send(host, {"over": exit_code})
            host.disconnect()
        self._is_closed = True
        self._listener.shutdown(socket.SHUT_RDWR)  # Wakes the thread that reads.
        for _ in range(WELCOMING_THREADS):
            self._new.put(None)

    def _connected(self) -> list[ConnectedHost]:
        with self._lock:
            return list(self._hosts.values())

    def _send(self, host: ConnectedHost, message: Mapping[str, Any]) -> bool:
        """Send a message to a host, and return whether it is connected."""
        try:
            host.send(message)
        except OSError:  # A host that was lost connects again. `_read` notices it, too.
            return False
        return True

    def _read(self) -> None:
        """Accept connections, and read what the connected hosts send, until the registry closes."""
        while not self._is_closed:
            for fd, _ in self._epoll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                    continue
                host = self._connections[fd]
                try:
                    self._take(host, receive(host.control))
                except OSError:
                    self._epoll.unregister(fd)
                    del self._connections[fd]
                    self.forget(host)
                    host.close()
        self._listener.close()
        for host in self._connections.values():
            host.close()
        self._epoll.close()

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError as error:
            if error.errno in _NO_FILES:  # Later, some may have been closed.
                self._log_once(f"--join: cannot accept more connections: {error.strerror}.")
                time.sleep(1.0)
            return
        self._new.put((connection, address[0]))

    def _welcome_all(self) -> None:
        while (new := self._new.get()) is not None:
            self._welcome(*new)

    def _log_once(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            self._log(text)

    def _welcome(self, connection: socket.socket, address: str) -> None:
        """Authenticate a new connection, and hand it to what waits for it or register its host."""
        with ExitStack() as opened:
            opened.enter_context(connection)
            try:
                set_keepalive(connection)
                set_read_timeout(connection, ANSWER_SECONDS)
                control = opened.enter_context(Connection(os.dup(connection.fileno())))
                deliver_challenge(control, self._token)
                answer_challenge(control, self._token)
                hello = receive(control)
            except AuthenticationError:
                self._log(f"--join: {address} does not know the token ({TOKEN_VARIABLE}).")
                return
            except (OSError, EOFError):  # No host agent; a port scan, perhaps.
                return
            if "key" in hello:
                control.close()
                set_read_timeout(connection, 0)
                is_kept = self._hand_out(hello["key"], connection)
            elif "name" in hello and "slots" in hello:
                host = Host(hello["name"], int(hello["slots"]))
                is_kept = self._register(ConnectedHost(host, control, connection, address))
            else:
                self._log_once(f"--join: {address} runs another version of distrib.")
                return
            if is_kept:
                opened.pop_all()

    def _hand_out(self, key: str, connection: socket.socket) -> bool:
        """Hand a connection to the request that waits for it; return whether one does."""
        with self._lock:
            self._last_arrival = time.monotonic()
            sockets = self._expected.get(key)
            if sockets is not None:
                sockets.put(connection)
        return sockets is not None

    def _register(self, host: ConnectedHost) -> bool:
        """Register a host; return whether it may join."""
        name = host.host.name
        if name == self._name:
            self._log_once(
                f"--join: the host at {host.address} is named {name}, like this one. Give each "
                "host a host name of its own."
            )
            return False
        with self._lock:
            before = self._hosts.get(name)
            self._hosts[name] = host  # A host that was started again replaces the old one.
            exit_code = self._exit_code
        if before is not None and before.address != host.address:
            self._log(
                f"--join: {name} has joined from {host.address}, in place of the one at "
                f"{before.address}. If those are two hosts, give each a host name of its own."
            )
        if exit_code is not None:
            self._send(host, {"end": exit_code})
        fd = host.control.fileno()
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except ValueError:  # It is closed: the job has just ended.
            return False
        self._connections[fd] = host
        return True

    def _take(self, host: ConnectedHost, message: Mapping[str, Any]) -> None:
        """Take what a host has sent."""
        name = host.host.name
        if "number" in message:
            host.answers.put(message)
        elif "leave" in message:
            host.is_stopping = True
            with self._lock:
                self._stopping.append(name)
        elif "goodbye" in message:
            self.goodbyes.add(name)
        elif "refused" in message:
            with self._lock:
                sockets = self._expected.get(message["refused"])
            if sockets is not None:
                sockets.put(None)


class AgentRequest:
    """A rank agent that was requested from a host.

    Args:
        key: By which its connection identifies itself.
        sockets: Gets that connection; `None` if the host is lost or refuses.
        host: Of which it was requested; `None` if it was not connected.
    """

    def __init__(
        self,
        key: str,
        sockets: queue.SimpleQueue[socket.socket | None],
        host: ConnectedHost | None,
    ) -> None:
        self.key = key
        self.sockets = sockets
        self.host = host
