"""Two-way connections to keepers: a child process, an ssh to another host, or a socket.

Both carry the same bytes (`keeper.py`), so nobody but this module has to know which one it is.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Protocol

from .network import SSH_FAILED
from .rank_agent import BEAT, ERRORS, EXIT, HEADER, MARK, OUTPUT

# In place of an exit code: the connection to the rank broke before there was one.
LOST = -1


class Link(Protocol):
    """A connection to one keeper."""

    @property
    def sources(self) -> Mapping[int, int]:
        """File descriptors to read: that of the keeper's answers is for 1, its complaints for 2."""

    def tell(self, data: bytes) -> None:
        """Send bytes, as far as the keeper can hear."""

    def failure(self) -> int | None:
        """Return what stands for the exit code of a rank that has told none.

        It is asked for when there is nothing more to read. `None` while it is not known.
        """

    def cut(self) -> None:
        """Give the connection up; the keeper dies of that if it can be reached at all."""

    def close(self) -> None:
        """Free what is left when all has been read."""


class ProcessLink:
    """To a child process: a keeper, or the ssh that has one at its other end.

    Args:
        command: What starts it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C is for the launcher, which passes it on.
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        self._stdin, self._stdout, self._stderr = _all(
            self._process.stdin, self._process.stdout, self._process.stderr
        )
        self._is_new = True

    @property
    def sources(self) -> Mapping[int, int]:
        """See `Link`."""
        return {OUTPUT: self._stdout.fileno(), ERRORS: self._stderr.fileno()}

    def tell(self, data: bytes) -> None:
        """See `Link`."""
        # A keeper that cannot hear has ended, or its connection will. It may be closed by now.
        with suppress(BrokenPipeError, ValueError):
            while data:
                data = data[self._stdin.write(data) or len(data) :]
        if self._is_new:  # What it shall run it must hear whole; what follows it can hear again.
            os.set_blocking(self._stdin.fileno(), False)
            self._is_new = False

    def failure(self) -> int | None:
        """See `Link`: that of a keeper that could not do its work, if it was one."""
        code = self._process.poll()
        if code is None:
            return None
        return LOST if code <= 0 or code == SSH_FAILED else code

    def cut(self) -> None:
        """See `Link`."""
        self._process.kill()

    def close(self) -> None:
        """See `Link`."""
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()
        self._process.wait()


class SocketLink:
    """To a keeper that another host has started for us, with a socket for its input and output.

    Args:
        connection: Connected.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @property
    def sources(self) -> Mapping[int, int]:
        """See `Link`."""
        return {OUTPUT: self._socket.fileno()}

    def tell(self, data: bytes) -> None:
        """See `Link`."""
        with suppress(OSError):
            self._socket.sendall(data)

    def failure(self) -> int | None:
        """See `Link`."""
        return LOST

    def cut(self) -> None:
        """See `Link`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `Link`."""
        self._socket.close()


class LostLink:
    """To a keeper that there was no way to start."""

    @property
    def sources(self) -> Mapping[int, int]:
        """See `Link`."""
        return {}

    def tell(self, data: bytes) -> None:
        """See `Link`."""

    def failure(self) -> int | None:
        """See `Link`."""
        return LOST

    def cut(self) -> None:
        """See `Link`."""

    def close(self) -> None:
        """See `Link`."""


class Frames:
    """Takes a keeper's answer apart as it comes in.

    Attributes:
        exit_code: The rank's; `None` before its end.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._rest = b""
        self._marked = False

    def take(self, data: bytes) -> tuple[list[tuple[int, bytes]], list[Mapping[str, Any]]]:
        """Return the output that has arrived, by stream, and the signs of life."""
        self._rest += data
        if not self._marked:
            _, mark, rest = self._rest.partition(MARK)  # A login shell may have said something.
            if not mark:
                return [], []
            self._marked, self._rest = True, rest
        output, beats = [], []
        while len(self._rest) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._rest)
            end = HEADER.size + length
            if len(self._rest) < end:
                break
            content, self._rest = self._rest[HEADER.size : end], self._rest[end:]
            if kind == BEAT:
                beats += [json.loads(line) for line in content.splitlines()]
            elif kind == EXIT:
                self.exit_code = int(content)
            else:
                output.append((kind, content))
        return output, beats


def _all(*streams: IO[bytes] | None) -> list[IO[bytes]]:
    return [stream for stream in streams if stream is not None]
