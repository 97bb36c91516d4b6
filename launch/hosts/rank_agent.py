"""Stands beside one rank on its host, and lets it live no longer than the launcher does.

The launcher starts a keeper for every rank, here as a child and elsewhere through ssh; from then on
both are alike. The launcher writes to the keeper's standard input: first what to run, as one line
of JSON, then the numbers of the signals that the rank shall get. When that input ends, because the
launcher or the connection has died, the rank and its process group are killed. A cable that was cut
ends nothing, so for another host the launcher also writes empty lines from time to time, and the
keeper waits for the next one only so long.

The keeper answers on its standard output, in frames behind a mark: what the rank
writes on both of its streams, its signs of life (`distrib/heartbeat.py`), and at the end its exit
code, 128 plus the number for a signal. So one connection is enough, be it a pipe, an ssh or a
socket; and if it ends without an exit code, it was lost. What the keeper itself has to complain
of, it writes to standard error.

It is run by its path and uses nothing but the standard library, so that it starts in no time.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

# Written before the first frame: a login shell may have said something, too.
MARK = b"\0distrib keeper\0"
OUTPUT, ERRORS, BEAT, EXIT = 1, 2, 3, 4
HEADER = struct.Struct("!BI")  # What the frame holds, and its length in bytes.
CHUNK = 65536
EXIT_USAGE = 64
PR_SET_PDEATHSIG = 1
HEARTBEAT = "DISTRIB_HEARTBEAT"
# What reaches the keeper itself is not for the rank: the launcher decides what that gets.
PASSED_OVER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Source:
    """One way out of the rank: an output stream, or its heartbeat.

    Args:
        kind: Of its frames.
        size: Rows and columns of the terminal that the rank shall see; `None` for a pipe.
    """

    def __init__(self, kind: int, size: list[int] | None = None) -> None:
        self.kind = kind
        self.fd, self.rank_end = os.pipe() if size is None else _open_terminal(*size)
        self.open = True
        os.set_blocking(self.fd, False)

    def read(self) -> bytes:
        """Return what the rank has written, as a frame; nothing if that is nothing."""
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return b""
        except OSError:  # A terminal that nobody holds any more.
            data = b""
        self.open = bool(data)
        return frame(self.kind, data) if data else b""


def frame(kind: int, data: bytes) -> bytes:
    """Return bytes with what says how many they are, and of what."""
    return HEADER.pack(kind, len(data)) + data


class Keeper:
    """One rank, from its start to its end.

    Args:
        spec: `command`, a list; its `directory`, `None` for the keeper's; its `environment`, in
            addition to the keeper's; `terminals`, rows and columns by file descriptor; `lease`,
            seconds or `None`.
        inbox: What the launcher has written already.
    """

    def __init__(self, spec: Mapping[str, Any], inbox: bytes) -> None:
        self._inbox = inbox
        self._listening = True
        self._lease: float | None = spec["lease"]
        self._heard = time.monotonic()
        self._pending = MARK
        os.set_blocking(1, False)
        terminals = spec["terminals"]
        output, errors = (Source(kind, terminals.get(str(kind))) for kind in (OUTPUT, ERRORS))
        beats = Source(BEAT)
        os.set_blocking(beats.rank_end, False)
        self._sources = [output, errors, beats]
        self._woken = _wake_on_signals()
        variable = {HEARTBEAT: f"{beats.rank_end}:{os.fstat(beats.rank_end).st_ino}"}
        self._rank = subprocess.Popen(
            spec["command"],
            cwd=spec["directory"],
            env={**os.environ, **spec["environment"], **variable},
            stdin=subprocess.DEVNULL,
            stdout=output.rank_end,
            stderr=errors.rank_end,
            pass_fds=(beats.rank_end,),
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        for source in self._sources:
            os.close(source.rank_end)

    def keep(self) -> int:
        """Stay until the rank has ended, and what it wrote is passed on; return its exit code."""
        while not self._has_ended():
            self._step()
        self._kill()  # Whatever the rank has left running.
        for source in self._sources:
            while data := source.read():  # To the end, or where a process of another group goes on.
                self._pending += data
            source.open = False
        code = self._rank.wait()
        code = 128 - code if code < 0 else code
        self._pending += frame(EXIT, b"%d" % code)
        while self._pending:
            self._step()
        return code

    def _has_ended(self) -> bool:
        # Not `poll`: until somebody takes its exit code, its number is given to no other process.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._rank.pid, flags) is not None

    def _step(self) -> None:
        # While something waits for the reader, nothing more is taken, and the rank waits as well.
        sources = {s.fd: s for s in self._sources if s.open and not self._pending}
        readers = [*sources, self._woken, *([0] if self._listening else [])]
        writers = [1] if self._pending else []
        ready, free, _ = select.select(readers, writers, [], 1 if self._lease else None)
        if self._woken in ready:
            os.read(self._woken, CHUNK)
        if 0 in ready:
            self._listen()
        for fd in sources.keys() & ready:
            self._pending += sources[fd].read()
        if free:
            self._write()
        if self._lease and time.monotonic() - self._heard > self._lease:
            self._give_up()

    def _write(self) -> None:
        """Pass on as much as the reader has room for."""
        try:
            self._pending = self._pending[os.write(1, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:  # The launcher is gone, as standard input will say too.
            self._give_up()

    def _give_up(self) -> None:
        """End the rank, and what it has to say: nobody is there to hear it."""
        self._kill()
        self._pending = b""
        for source in self._sources:
            source.open = False

    def _listen(self) -> None:
        try:
            data = os.read(0, CHUNK)
        except BlockingIOError:  # A socket is one thing for both directions.
            return
        except OSError:  # Reset, timed out, no route: whatever it is, it has ended.
            data = b""
        self._heard = time.monotonic()
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        for number in map(int, filter(None, lines)):
            os.kill(self._rank.pid, number)
            if number == signal.SIGKILL:
                self._kill()
        if not data:
            self._listening = False
            self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._rank.pid, signal.SIGKILL)


def main() -> int:
    """Read what to run, run it, and return its exit code.

    A host that has come by itself gives the command on the command line, and is told none.
    """
    inbox = b""
    while b"\n" not in inbox:
        data = os.read(0, CHUNK)
        if not data:  # The launcher has died before it said what to do.
            return EXIT_USAGE
        inbox += data
    line, _, inbox = inbox.partition(b"\n")
    spec = json.loads(line)
    try:
        keeper = Keeper({**spec, "command": sys.argv[1:] or spec["command"]}, inbox)
    except OSError as error:
        print(f"distrib: cannot start on {os.uname().nodename}: {error}", file=sys.stderr)
        return EXIT_USAGE
    return keeper.keep()


def _wake_on_signals() -> int:
    """Return a file descriptor that becomes readable when the rank ends, or a signal comes."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *PASSED_OVER):
        signal.signal(number, lambda *_: None)  # Not SIG_IGN, which the rank would inherit.
    return reader


def _die_with_parent() -> Callable[[], None]:
    """Return what a new process calls so as to be killed when the keeper is."""
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _open_terminal(rows: int, columns: int) -> tuple[int, int]:
    """Return both ends of a terminal that leaves the bytes as they are."""
    ours, its = pty.openpty()
    attributes = termios.tcgetattr(its)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(its, termios.TCSANOW, attributes)
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return ours, its


if __name__ == "__main__":
    exit_code = main()
    sys.stderr.flush()
    os._exit(exit_code)  # The launcher compares when ranks ended; Python takes its time to end.
