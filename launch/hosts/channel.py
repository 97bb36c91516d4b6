"""Two-way channels to rank agents: a child process, an ssh to another host, or a socket.

All of them carry the same bytes (`rank_agent.py`), so only this module knows which one it is.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Protocol

from .network import SSH_FAILED
from .rank_agent import ERRORS, EXIT, HEADER, HEARTBEAT, MARK, OUTPUT

# In place of an exit code: the channel broke before the rank agent sent one.
LOST = -1


class Channel(Protocol):
    """A channel to one rank agent."""

    @property
    def fds(self) -> Mapping[int, int]:
        """File descriptors to read: the agent's frames at key 1, its own errors at key 2."""

    def send(self, data: bytes) -> None:
        """Send bytes; they are lost if the agent has ended."""

    def is_open(self) -> bool:
        """Tell whether the agent of a spare is still there; it has sent nothing yet."""

    def failure(self) -> int | None:
        """Return the exit code of a rank whose agent reported none; `None` while unknown.

        Called after both file descriptors reached their end.
        """

    def abort(self) -> None:
        """Give the channel up; an agent that can still be reached ends with it."""

    def close(self) -> None:
        """Free resources after everything was read."""


class ProcessChannel:
    """A channel to a child process: a rank agent, or the ssh with one at its other end.

    Args:
        command: What to start.
    """

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C is for the launcher, which forwards it.
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        self._stdin, self._stdout, self._stderr = _all(
            self._process.stdin, self._process.stdout, self._process.stderr
        )

    @property
    def fds(self) -> Mapping[int, int]:
        """See `Channel`."""
        return {OUTPUT: self._stdout.fileno(), ERRORS: self._stderr.fileno()}

    def send(self, data: bytes) -> None:
        """See `Channel`."""
        # A broken pipe means that the agent or its connection has ended; it may be closed by now.
        with suppress(BrokenPipeError, ValueError):
            # A spec must arrive whole; other messages may be lost and are repeated.
            os.set_blocking(self._stdin.fileno(), data.startswith(b"{"))
            while data:
                data = data[self._stdin.write(data) or len(data) :]

    def is_open(self) -> bool:
        """See `Channel`."""
        return self._process.poll() is None

    def failure(self) -> int | None:
        """See `Channel`: the exit code of a rank agent that could not start its rank."""
        code = self._process.poll()
        if code is None:
            return None
        return LOST if code <= 0 or code == SSH_FAILED else code

    def abort(self) -> None:
        """See `Channel`."""
        # What it has started, such as a proxy of ssh, holds the pipes open, too.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """See `Channel`."""
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()
        self._process.wait()


class SocketChannel:
    """A channel to a rank agent that another host started, with a socket as its input and output.

    Args:
        connection: Connected.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @property
    def fds(self) -> Mapping[int, int]:
        """See `Channel`."""
        return {OUTPUT: self._socket.fileno()}

    def send(self, data: bytes) -> None:
        """See `Channel`."""
        with suppress(OSError):
            self._socket.sendall(data)

    def is_open(self) -> bool:
        """See `Channel`."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def failure(self) -> int | None:
        """See `Channel`."""
        return LOST

    def abort(self) -> None:
        """See `Channel`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `Channel`."""
        self._socket.close()


class ClosedChannel:
    """In place of a channel to a rank agent that could not be started."""

    @property
    def fds(self) -> Mapping[int, int]:
        """See `Channel`."""
        return {}

    def send(self, data: bytes) -> None:
        """See `Channel`."""

    def is_open(self) -> bool:
        """See `Channel`."""
        return False

    def failure(self) -> int | None:
        """See `Channel`."""
        return LOST

    def abort(self) -> None:
        """See `Channel`."""

    def close(self) -> None:
        """See `Channel`."""


class FrameParser:
    """Parses the frames that a rank agent sends, in whatever pieces they arrive.

    Attributes:
        exit_code: The rank's; `None` before its end.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._buffer = b""
        self._mark_seen = False

    def feed(self, data: bytes) -> tuple[list[tuple[int, bytes]], list[Mapping[str, Any]]]:
        """Return the output that has arrived, as (stream, bytes), and the heartbeats."""
        self._buffer += data
        if not self._mark_seen:
            _, mark, rest = self._buffer.partition(MARK)  # A login shell may have printed first.
            if not mark:
                return [], []
            self._mark_seen, self._buffer = True, rest
        output, heartbeats = [], []
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            content, self._buffer = self._buffer[HEADER.size : end], self._buffer[end:]
            if kind == HEARTBEAT:
                heartbeats += [json.loads(line) for line in content.splitlines()]
            elif kind == EXIT:
                self.exit_code = int(content)
            else:
                output.append((kind, content))
        return output, heartbeats


def _all(*streams: IO[bytes] | None) -> list[IO[bytes]]:
    return [stream for stream in streams if stream is not None]
