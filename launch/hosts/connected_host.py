"""A host that has joined, as the coordinator sees it: messages to its agent, and the replies."""

from __future__ import annotations

import queue
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from .placement import Host
from .protocol import send


class ConnectedHost:
    """A host whose agent is connected.

    Args:
        host: Its name and slots.
        control: For messages to and from its agent.
        connection: The socket below `control`.
        address: The host's.

    Attributes:
        answers: What the agent has replied to requests.
        is_stopping: Whether it has announced that it will stop.
    """

    def __init__(
        self, host: Host, control: Connection, connection: socket.socket, address: str
    ) -> None:
        self.host = host
        self.control = control
        self.address = address
        self.answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self.is_stopping = False
        self._connection = connection
        self._lock = threading.Lock()  # One thread closes the connection, others send.

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message to its agent.

        Raises:
            OSError: If the host is lost.
        """
        with self._lock:
            if self.control.closed:
                raise ConnectionError("the connection was closed")
            send(self.control, message)

    def disconnect(self) -> None:
        """End the connection; the thread that reads from it notices."""
        with suppress(OSError):  # It may be lost already.
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Free resources."""
        with self._lock:
            self.control.close()
            self._connection.close()

    def request(self, message: Mapping[str, Any]) -> str:
        """Send a request, and return the number of its reply."""
        number = secrets.token_hex(4)
        with suppress(OSError):  # Then there is no reply.
            self.send({**message, "number": number})
        return number

    def answer(self, number: str, deadline: float) -> Mapping[str, Any] | None:
        """Return the reply to a request; `None` if it does not arrive in time.

        Args:
            number: Of the request.
            deadline: In `time.monotonic()` seconds.
        """
        try:
            while True:
                answer = self.answers.get(timeout=max(0.0, deadline - time.monotonic()))
                if answer["number"] == number:
                    return answer
        except queue.Empty:
            return None
