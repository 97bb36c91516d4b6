"""The hosts that are connected to the coordinator of `distrib run --join`.

Each host agent holds one control connection, by which it registers and gets requests. For each of
its ranks in an attempt it opens one more connection, with the key that the request named, and
starts a rank agent with that connection as its input and output.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from distrib.errors import ConfigurationError

from .channel import Channel, ClosedChannel, SocketChannel
from .network import LOOPBACK
from .placement import Host
from .protocol import (
    ANSWER_SECONDS,
    TOKEN_VARIABLE,
    receive,
    send,
    set_keepalive,
    set_read_timeout,
)


class ConnectedHost:
    """A host whose agent is connected.

    Args:
        host: Its name and slots.
        control: For messages to and from its agent.
        connection: The socket below `control`.

    Attributes:
        answers: What the agent has replied to requests.
        is_stopping: Whether it has announced that it will stop.
    """

    def __init__(self, host: Host, control: Connection, connection: socket.socket) -> None:
        self.host = host
        self.control = control
        self.answers: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self.is_stopping = False
        self._connection = connection

    def disconnect(self) -> None:
        """End the connection; the thread that reads from it notices."""
        with suppress(OSError):  # It may be lost already.
            self._connection.shutdown(socket.SHUT_RDWR)

    def request(self, message: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Send a request and return the reply; `None` if none arrives in time."""
        number = secrets.token_hex(4)
        try:
            send(self.control, {**message, "number": number})
            while (answer := self.answers.get(timeout=ANSWER_SECONDS))["number"] != number:
                pass
        except (OSError, queue.Empty):
            return None
        return answer


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
        self._log = log
        self._lock = threading.Lock()
        self._hosts: dict[str, ConnectedHost] = {}
        self._stopping: list[str] = []
        self._expected: dict[str, queue.Queue[socket.socket]] = {}
        self._exit_code: int | None = None
        self.goodbyes: set[str] = set()
        try:
            self._listener = socket.create_server(("" if token else LOOPBACK, port), backlog=128)
        except OSError as error:
            raise ConfigurationError(
                f"--join: cannot listen on port {port} of {name}: {error}. Is another job running "
                "here? Then give this one a port of its own."
            ) from error
        threading.Thread(target=self._accept, daemon=True).start()

    def available(self) -> list[ConnectedHost]:
        """Return the connected hosts that will not stop, in the natural order of their names."""
        hosts = [host for host in self._connected() if not host.is_stopping]
        return sorted(hosts, key=lambda host: _natural(host.host.name))

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
        key, sockets = secrets.token_hex(16), queue.Queue[socket.socket]()
        with self._lock:
            self._expected[key] = sockets
        self._tell(hostname, {"start": key, "attempt": attempt})
        return AgentRequest(key, sockets)

    def announce_rank(self, hostname: str, key: str, attempt: int) -> None:
        """Tell a host that one of its spares becomes a rank.

        Args:
            hostname: Which host.
            key: Of the request for the spare's agent.
            attempt: Number of the attempt.
        """
        self._tell(hostname, {"use": key, "attempt": attempt})

    def channel(self, request: AgentRequest, deadline: float) -> Channel:
        """Return the channel to a requested rank agent; a closed one if it was not started.

        Args:
            request: As `request_agent` returned it.
            deadline: When to give it up, in `time.monotonic()` seconds.
        """
        try:
            timeout = max(0.0, deadline - time.monotonic())
            return SocketChannel(request.sockets.get(timeout=timeout))
        except queue.Empty:
            return ClosedChannel()
        finally:
            with self._lock:
                del self._expected[request.key]

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
            self._send(host.control, {"end": exit_code})

    def close(self, exit_code: int | None) -> None:
        """Stop listening and disconnect all hosts.

        Args:
            exit_code: What the hosts end with; `None` if they are to wait for a new coordinator.
        """
        self._listener.shutdown(socket.SHUT_RDWR)  # Wakes the thread that accepts.
        self._listener.close()
        for host in self._connected():
            if exit_code is not None:
                self._send(host.control, {"over": exit_code})
            host.disconnect()

    def _connected(self) -> list[ConnectedHost]:
        with self._lock:
            return list(self._hosts.values())

    def _tell(self, hostname: str, message: Mapping[str, Any]) -> None:
        """Send a message to a host if it is connected."""
        with self._lock:
            host = self._hosts.get(hostname)
        if host is not None:
            try:
                send(host.control, message)
            except OSError:
                self.forget(host)

    def _send(self, control: Connection, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # A host that was lost connects again.
            send(control, message)

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError:  # The job has ended.
                return
            arguments = (connection, address[0])
            threading.Thread(target=self._welcome, args=arguments, daemon=True).start()

    def _welcome(self, connection: socket.socket, address: str) -> None:
        """Authenticate a new connection, and hand it to what waits for it or register its host."""
        set_keepalive(connection)
        set_read_timeout(connection, ANSWER_SECONDS)
        control = Connection(os.dup(connection.fileno()))
        try:
            deliver_challenge(control, self._token)
            answer_challenge(control, self._token)
            hello = receive(control)
        except (AuthenticationError, OSError, EOFError) as error:
            # Anything but a wrong token is no host agent; a port scan, perhaps.
            if isinstance(error, AuthenticationError):
                self._log(f"--join: {address} does not know the token ({TOKEN_VARIABLE}).")
            control.close()
            connection.close()
            return
        set_read_timeout(connection, 0)
        if "key" in hello:
            control.close()
            with self._lock:
                sockets = self._expected.get(hello["key"])
            if sockets is None:
                connection.close()
            else:
                sockets.put(connection)
            return
        with connection, control:
            host = Host(hello["name"], int(hello["slots"]))
            self._register(ConnectedHost(host, control, connection))

    def _register(self, host: ConnectedHost) -> None:
        """Register a host, and read its messages until its connection ends."""
        name = host.host.name
        with self._lock:
            self._hosts[name] = host  # A host that was started again replaces the old one.
            exit_code = self._exit_code
        if exit_code is not None:
            self._send(host.control, {"end": exit_code})
        try:
            while True:
                message = receive(host.control)
                if "number" in message:
                    host.answers.put(message)
                elif "leave" in message:
                    host.is_stopping = True
                    with self._lock:
                        self._stopping.append(name)
                elif "goodbye" in message:
                    self.goodbyes.add(name)
        except OSError:
            self.forget(host)


class AgentRequest:
    """A rank agent that was requested from a host.

    Args:
        key: By which its connection identifies itself.
        sockets: Gets that connection.
    """

    def __init__(self, key: str, sockets: queue.Queue[socket.socket]) -> None:
        self.key = key
        self.sockets = sockets


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which h2 comes before h10."""
    parts = "".join(c if c.isdecimal() else f"\0{c}\0" for c in name).split("\0")
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part]
