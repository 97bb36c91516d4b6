"""One rank of an attempt, as the supervisor sees it: the channel to its rank agent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ..hosts.channel import LOST, Channel, FrameParser
from ..hosts.placement import RankPlacement
from ..process.terminal import STDOUT

CHUNK = 65536


class RankProcess:
    """One rank.

    Args:
        placement: Where it runs.
        channel: To a rank agent that waits for its spec.
        spec: What the agent runs.

    Attributes:
        open_fds: File descriptors that may still be read, by stream.
        sent: Signals that were sent to the rank.
    """

    def __init__(self, placement: RankPlacement, channel: Channel, spec: Mapping[str, Any]) -> None:
        self.placement = placement
        self.sent: set[int] = set()
        self.open_fds = dict(channel.fds)
        self._channel = channel
        self._parser = FrameParser()
        self._aborted = False
        channel.send(json.dumps(spec).encode() + b"\n")

    def read(self, stream: int) -> tuple[list[tuple[int, bytes]], list[Mapping[str, Any]]]:
        """Read what has arrived: output of the rank as (stream, bytes), and its heartbeats."""
        try:
            data = os.read(self.open_fds[stream], CHUNK)
        except OSError:  # Reset, timed out, no route: in each case the connection is lost.
            data = b""
        if not data:
            del self.open_fds[stream]
            return [(stream, b"")], []
        # Standard error of the channel carries errors of the rank agent itself, or of ssh.
        return self._parser.feed(data) if stream == STDOUT else ([(stream, data)], [])

    def signal(self, number: int) -> None:
        """Send a signal to the rank."""
        self.sent.add(number)
        self._channel.send(b"%d\n" % number)

    def send_keepalive(self) -> None:
        """Tell the rank agent that the launcher is running."""
        self._channel.send(b"\n")

    def abandon(self) -> None:
        """Give the channel up."""
        self._aborted = True
        self._channel.abort()

    def exit_code(self) -> int | None:
        """Return the exit code, 128 plus the number for a signal, or `LOST`; `None` if running."""
        if self.open_fds:
            return None
        code = self._parser.exit_code
        if code is None:
            code = LOST if self._aborted else self._channel.failure()
        if code is not None:
            self._channel.close()
        return code
