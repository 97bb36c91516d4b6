"""Stands beside one rank on its host, and lets it live no longer than the launcher does.

The launcher starts a keeper for every rank, here as a child and elsewhere through ssh; from then on
both are alike. The launcher writes to the keeper's standard input: first what to run, as one line
of JSON, then the numbers of the signals that the rank shall get. When that input ends, because the
launcher or the connection has died, the rank and its process group are killed. A cable that was cut
ends nothing, so for another host the launcher also writes empty lines from time to time, and the
keeper waits for the next one only so long.

The keeper passes on what the rank writes, and ends with the rank's exit code: 128 plus the number
for a signal, and 1 for 255, by which ssh means a lost connection.

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

CHUNK = 65536
EXIT_USAGE = 64
PR_SET_PDEATHSIG = 1
# What reaches the keeper itself is not for the rank: the launcher decides what that gets.
PASSED_OVER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Stream:
    """The way from one of the rank's output streams to the same stream of the keeper.

    Args:
        target: File descriptor of both streams: 1 or 2.
        size: Rows and columns of the terminal that the rank shall see; `None` for a pipe.
    """

    def __init__(self, target: int, size: list[int] | None) -> None:
        self.target = target
        self.source, self.rank_end = os.pipe() if size is None else _open_terminal(*size)
        self.open = True
        self.pending = b""
        os.set_blocking(self.source, False)
        os.set_blocking(target, False)

    def read(self) -> bool:
        """Take what the rank has written, and return whether there was something."""
        try:
            data = os.read(self.source, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # A terminal that nobody holds any more.
            data = b""
        self.open = bool(data)
        self.pending += data
        return self.open

    def write(self) -> None:
        """Pass on as much as the reader has room for."""
        try:
            self.pending = self.pending[os.write(self.target, self.pending) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # The launcher is gone, as standard input will say too.
            self.close()

    def close(self) -> None:
        """Give up what is pending and whatever may come: nobody is there to read it."""
        self.open = False
        self.pending = b""


class Keeper:
    """One rank, from its start to its end.

    Args:
        spec: `command`, a list; its `directory`; its `environment`, in addition to the keeper's;
            `terminals`, rows and columns by file descriptor; `lease`, seconds or `None`.
        inbox: What the launcher has written already.
    """

    def __init__(self, spec: Mapping[str, Any], inbox: bytes) -> None:
        self._inbox = inbox
        self._listening = True
        self._lease: float | None = spec["lease"]
        self._heard = time.monotonic()
        self._streams = [Stream(fd, spec["terminals"].get(str(fd))) for fd in (1, 2)]
        self._woken = _wake_on_signals()
        out, err = (stream.rank_end for stream in self._streams)
        self._rank = subprocess.Popen(
            spec["command"],
            cwd=spec["directory"],
            env={**os.environ, **spec["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        os.close(out)
        os.close(err)

    def keep(self) -> int:
        """Stay until the rank has ended and its output is passed on; return the exit code."""
        while not self._has_ended():
            self._step()
        self._kill()  # Whatever the rank has left running.
        for stream in self._streams:
            while stream.read():  # To the end, or to where a process of another group holds on.
                pass
            stream.open = False
        while any(stream.pending for stream in self._streams):
            self._step()
        code = self._rank.wait()
        return 128 - code if code < 0 else 1 if code == 255 else code

    def _has_ended(self) -> bool:
        # Not `poll`: until somebody takes its exit code, its number is given to no other process.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._rank.pid, flags) is not None

    def _step(self) -> None:
        full = {stream.target: stream for stream in self._streams if stream.pending}
        empty = {s.source: s for s in self._streams if s.open and not s.pending}
        readers = [*empty, self._woken, *([0] if self._listening else [])]
        ready, free, _ = select.select(readers, [*full], [], 1 if self._lease else None)
        if self._woken in ready:
            os.read(self._woken, CHUNK)
        if 0 in ready:
            self._listen()
        for fd in empty.keys() & ready:
            empty[fd].read()
        for fd in free:
            full[fd].write()
        if self._lease and time.monotonic() - self._heard > self._lease:
            self._kill()
            for stream in self._streams:
                stream.close()

    def _listen(self) -> None:
        data = os.read(0, CHUNK)
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
    """Read what to run, run it, and return its exit code."""
    inbox = b""
    while b"\n" not in inbox:
        data = os.read(0, CHUNK)
        if not data:  # The launcher has died before it said what to do.
            return EXIT_USAGE
        inbox += data
    line, _, inbox = inbox.partition(b"\n")
    try:
        keeper = Keeper(json.loads(line), inbox)
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
