"""Runs one rank on its host, and kills it when the launcher dies or becomes unreachable.

The launcher starts a rank agent for every rank: as a child process on its own host, by ssh
elsewhere. Both speak the same protocol. The launcher writes to the agent's standard input: first
the spec of what to run, as one line of JSON, then the numbers of signals for the rank, one a line.
When that input ends, because the launcher or the connection has died, the agent kills the rank and
its process group. A cable that was cut does not end the input, so to another host the launcher also
writes empty lines as keepalives; the agent kills the rank if none arrives within the lease.

The agent answers on its standard output, in frames after a mark: what the rank writes on both of
its streams, its heartbeats (`distrib/heartbeat.py`), and at the end its exit code, 128 plus the
number for a signal. So one connection is enough, be it a pipe, an ssh or a socket; a connection
that ends without an exit code was lost. The agent writes its own errors to standard error.

A spec with a `spare` starts the rank's interpreter ahead of time (`launch/spare`). It imports
modules and waits, and so does the agent, until a second spec arrives: that of the rank.

It is run by its path and uses only the standard library, so that it starts fast.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

# Written before the first frame, because a login shell may have printed something.
MARK = b"\0distrib rank agent\0"
OUTPUT, ERRORS, HEARTBEAT, EXIT = 1, 2, 3, 4
HEADER = struct.Struct("!BI")  # The kind of the frame, and its length in bytes.
CHUNK = 65536
EXIT_USAGE = 64  # As in `distrib.errors`, which this file cannot import.
PR_SET_PDEATHSIG = 1
HEARTBEAT_VARIABLE = "DISTRIB_HEARTBEAT"  # As in `distrib.heartbeat`.
SPARE_VARIABLE = "DISTRIB_SPARE"  # As in `launch/spare/sitecustomize.py`.
SPARE_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "spare")
# Signals to the agent itself are not for the rank: the launcher decides what the rank gets.
IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class StartError(Exception):
    """The rank could not be started.

    Args:
        error: Why.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"distrib: cannot start on {os.uname().nodename}: {error}")


class RankStream:
    """A stream that the rank writes: standard output, standard error, or its heartbeats.

    Args:
        kind: Of its frames.
        size: Rows and columns of the terminal that the rank sees; `None` for a pipe.
    """

    def __init__(self, kind: int, size: list[int] | None = None) -> None:
        self.kind = kind
        self.fd, self.rank_end = os.pipe() if size is None else _open_terminal(*size)
        self.open = True
        os.set_blocking(self.fd, False)

    def read(self) -> bytes:
        """Return what the rank has written, as a frame; empty if it has written nothing."""
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return b""
        except OSError:  # A terminal that no process has open any more.
            data = b""
        self.open = bool(data)
        return frame(self.kind, data) if data else b""


def frame(kind: int, data: bytes) -> bytes:
    """Return bytes behind a header with their kind and length."""
    return HEADER.pack(kind, len(data)) + data


class RankAgent:
    """One rank, from its start to its end.

    Args:
        spec: `command`, a list; its `directory`, `None` for the agent's; its `environment`, in
            addition to the agent's; `terminals`, rows and columns by file descriptor; `lease`,
            seconds or `None`; for a spare also `spare` (see `launch/spare/preload.py`).
        inbox: What the launcher has already written behind the spec.
    """

    def __init__(self, spec: Mapping[str, Any], inbox: bytes) -> None:
        self._inbox = inbox
        self._input_open = True
        self._lease: float | None = spec["lease"]
        self._last_message = time.monotonic()
        self._pending = b""
        os.set_blocking(1, False)
        terminals = spec["terminals"]
        try:
            output, errors = (
                RankStream(kind, terminals.get(str(kind))) for kind in (OUTPUT, ERRORS)
            )
        except OSError as error:  # All terminals are taken.
            raise StartError(error) from error
        heartbeats = RankStream(HEARTBEAT)
        os.set_blocking(heartbeats.rank_end, False)
        self._streams = [output, errors, heartbeats]
        self._wakeup_fd = _wake_on_signals()
        self._spec = spec
        self._is_waiting = "spare" in spec
        # By which a spare gets the environment of the rank; `None` once there is no spare any more.
        self._spare_channel: socket.socket | None = None
        self._environment: Mapping[str, str] = {}
        self._rank = self._start_spare() if self._is_waiting else self._start()
        if not self._is_waiting:
            self._pending = MARK
            for stream in self._streams:
                os.close(stream.rank_end)

    def _start_spare(self) -> subprocess.Popen[bytes]:
        path = {**os.environ, **self._spec["environment"]}.get("PYTHONPATH")
        self._spare_channel, theirs = socket.socketpair()
        spare = {"fd": theirs.fileno(), "directory": self._spec["directory"], "pythonpath": path}
        spare |= self._spec["spare"]
        path = f"{SPARE_FOLDER}:{path}" if path else SPARE_FOLDER
        self._environment = {"PYTHONPATH": path, SPARE_VARIABLE: json.dumps(spare)}
        with theirs:
            return self._start(theirs.fileno())

    def _start(self, *fds: int) -> subprocess.Popen[bytes]:
        output, errors, heartbeats = (stream.rank_end for stream in self._streams)
        heartbeat = {HEARTBEAT_VARIABLE: f"{heartbeats}:{os.fstat(heartbeats).st_ino}"}
        try:
            return subprocess.Popen(
                self._spec["command"],
                cwd=self._spec["directory"],
                env={**os.environ, **self._spec["environment"], **heartbeat, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                pass_fds=(heartbeats, *fds),
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            raise StartError(error) from error

    def _take_over(self, spec: Mapping[str, Any]) -> None:
        """Let the spare become the rank.

        Args:
            spec: Of the rank. The variables of its environment that the spare has had from its
                start are left out: if the script changes them, the spare's imports saw others.
        """
        assert self._spare_channel is not None
        self._pending = MARK
        self._is_waiting = False
        own = spec["environment"].items() - self._spec["environment"].items()
        self._environment = dict(own)
        for stream in self._streams:
            if size := spec["terminals"].get(str(stream.kind)):
                _set_terminal_size(stream.fd, *size)
        with suppress(OSError):  # It has just ended.
            self._spare_channel.sendall(json.dumps(self._environment).encode() + b"\n")

    def _starts_afresh(self) -> bool:
        """Start the rank if its spare has ended before it became the rank."""
        channel, self._spare_channel = self._spare_channel, None
        if self._is_waiting or channel is None:
            return False
        self._kill()  # Processes that an import has forked.
        # Those that have left the group may have the other end open, hence no waiting.
        with channel, suppress(OSError):
            if channel.recv(1, socket.MSG_DONTWAIT):
                return False
        self._rank.wait()
        self._rank = self._start()
        return True

    def run(self) -> int:
        """Run until the rank has ended and its output is forwarded; return its exit code."""
        self._handle_lines()
        while not self._has_ended() or self._starts_afresh():
            self._step()
        self._kill()  # Processes that the rank left behind.
        if self._is_waiting:  # The launcher starts another spare; no rank has failed.
            return 0
        for stream in self._streams:
            # To the end, or until it blocks: a process outside the group may still have it open.
            while data := stream.read():
                self._pending += data
            stream.open = False
        code = self._rank.wait()
        code = 128 - code if code < 0 else code
        self._pending += frame(EXIT, b"%d" % code)
        while self._pending:
            self._step()
        return code

    def _has_ended(self) -> bool:
        # Not `poll`: until the exit code is read, the kernel does not reuse the pid.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._rank.pid, flags) is not None

    def _step(self) -> None:
        # While frames wait for the launcher, no more is read, and the rank blocks as well. Nor is
        # what a spare writes, which the launcher gets with the output of the rank.
        is_blocked = self._pending or self._is_waiting
        streams = {s.fd: s for s in self._streams if s.open and not is_blocked}
        readers = [*streams, self._wakeup_fd, *([0] if self._input_open else [])]
        writers = [1] if self._pending else []
        readable, writable, _ = select.select(readers, writers, [], 1 if self._lease else None)
        if self._wakeup_fd in readable:
            os.read(self._wakeup_fd, CHUNK)
        if 0 in readable:
            self._read_input()
        for fd in streams.keys() & readable:
            self._pending += streams[fd].read()
        if writable:
            self._write()
        if self._lease and time.monotonic() - self._last_message > self._lease:
            self._give_up()

    def _write(self) -> None:
        """Forward as much as the launcher has room for."""
        try:
            self._pending = self._pending[os.write(1, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:  # The launcher is gone; standard input will end too.
            self._give_up()

    def _give_up(self) -> None:
        """Kill the rank and drop its output: the launcher is gone."""
        self._kill()
        self._pending = b""
        for stream in self._streams:
            stream.open = False

    def _read_input(self) -> None:
        try:
            data = os.read(0, CHUNK)
        except BlockingIOError:  # A socket has one blocking mode for both directions.
            return
        except OSError:  # Reset, timed out, no route: in each case the connection has ended.
            data = b""
        self._last_message = time.monotonic()
        self._inbox += data
        self._handle_lines()
        if not data:
            self._input_open = False
            self._kill()

    def _handle_lines(self) -> None:
        *lines, self._inbox = self._inbox.split(b"\n")
        for line in filter(None, lines):
            if self._is_waiting:
                self._take_over(json.loads(line))
            else:
                self._signal(int(line))

    def _signal(self, number: int) -> None:
        self._spare_channel = None  # A rank that is asked to end is not started.
        os.kill(self._rank.pid, number)
        if number == signal.SIGKILL:
            self._kill()

    def _kill(self) -> None:
        self._spare_channel = None
        with suppress(ProcessLookupError):
            os.killpg(self._rank.pid, signal.SIGKILL)


def main() -> int:
    """Read the spec, run the rank, and return its exit code.

    A host that joined (`--join`) gives the command on the command line; the spec then has none.
    """
    inbox = b""
    while b"\n" not in inbox:
        data = os.read(0, CHUNK)
        if not data:  # The launcher died before it sent the spec.
            return EXIT_USAGE
        inbox += data
    line, _, inbox = inbox.partition(b"\n")
    spec = json.loads(line)
    try:
        return RankAgent({**spec, "command": sys.argv[1:] or spec["command"]}, inbox).run()
    except StartError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE


def _wake_on_signals() -> int:
    """Return a file descriptor that becomes readable when the rank ends or a signal arrives."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *IGNORED_SIGNALS):
        signal.signal(number, lambda *_: None)  # Not SIG_IGN, which the rank would inherit.
    return reader


def die_with_parent() -> Callable[[], None]:
    """Return a function that a new process calls so that the kernel kills it with the agent."""
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _open_terminal(rows: int, columns: int) -> tuple[int, int]:
    """Return both ends of a terminal that does not change the bytes written to it."""
    agent_end, rank_end = pty.openpty()
    attributes = termios.tcgetattr(rank_end)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(rank_end, termios.TCSANOW, attributes)
    _set_terminal_size(rank_end, rows, columns)
    return agent_end, rank_end


def _set_terminal_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


if __name__ == "__main__":
    exit_code = main()
    sys.stderr.flush()
    os._exit(exit_code)  # The launcher compares when ranks ended; Python's own exit is slow.
