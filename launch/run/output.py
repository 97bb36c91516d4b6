"""The ranks' output on one terminal: rank 0's unchanged, the others' as whole, marked lines.

When a job fails, the ranks that lost their peer often report it before the rank that caused the
failure has ended, and there are more of them. So from the first sign of a failure, standard error
is held back for the seconds it takes to find the root cause, and then shown with the cause first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from distrib.startup_noise import StartupNoise

from ..hosts.names import rank_numbers
from ..process.open_files import reserve_files
from ..process.terminal import DISK_FULL_ERRORS, STDERR, STDOUT, is_same_output, write

PARTIAL_LINE_SECONDS = 0.2
MAX_LINE_BYTES = 65536
TAIL_BYTES = 65536
MAX_SHOWN_RANKS = 16  # More errors of one moment say no more.
# How Python and C++ start to report an error that the process may not survive: `File` for a syntax
# error in the script, `usage` for argparse.
ERROR_START = re.compile(
    rb"^(Traceback \(most recent call last\)|  \+ Exception Group Traceback|  File \""
    rb"|usage: |terminate called|Fatal Python error)",
    re.MULTILINE,
)
LOG_LINE = re.compile(rb"^[IWE]\d{4} .*\n?", re.MULTILINE)
# What Horovod prints first when it has lost a peer, and hardly ever else.
PEER_LOSS = re.compile(rb"[Hh]orovod")


class OutputStream:
    """Where lines go: a terminal, a file or a pipe, possibly the same one for both streams."""

    def __init__(self) -> None:
        self._partial_since: float | None = None
        self._waiting: list[tuple[int, bytes]] = []

    def write(self, fd: int, data: bytes) -> None:
        """Show bytes at once."""
        write(fd, data)
        if data.endswith(b"\n"):
            self._partial_since = None
        elif self._partial_since is None:
            self._partial_since = time.monotonic()

    def write_line(self, fd: int, line: bytes) -> None:
        """Show a line as soon as it does not break into a partial line of rank 0."""
        self._waiting.append((fd, line))
        self.flush()

    def flush(self, force: bool = False) -> None:
        """Show waiting lines if rank 0's line is complete, or has been partial for a while."""
        if not self._waiting:
            return
        if self._partial_since is not None:
            if not force and time.monotonic() - self._partial_since < PARTIAL_LINE_SECONDS:
                return
            write(self._waiting[0][0], b"\n")
            self._partial_since = None
        for fd, line in self._waiting:
            write(fd, line)
        self._waiting.clear()


class LineSplitter:
    """Splits a stream into lines, as a terminal would finally show them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the complete lines, without their ends; empty data ends the stream."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) > MAX_LINE_BYTES):
            lines.append(self._rest)
            self._rest = b""
        # A progress bar is a line that is overwritten many times.
        return [line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines]


class Display:
    """Shows and keeps what the ranks write.

    Args:
        folder: Where each rank's output is appended to `rank-<n>.log`; `None` for nowhere.
        size: Number of ranks.
        noise: Removes TensorFlow's start-up messages, for each rank. Defaults to none, which shows
            them.

    Attributes:
        failed_ranks: When each rank that has reported an error on standard error did so last, by
            `time.monotonic`; in the order in which they first did.
        held_since: Since when standard error is held back, `None` if it is not.
    """

    def __init__(self, folder: Path | None, size: int, noise: Sequence[StartupNoise] = ()) -> None:
        self.failed_ranks: dict[int, float] = {}
        self.held_since: float | None = None
        self._noise = noise
        self._files = ExitStack()
        self._logs = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            reserve_files(size)
            paths = (folder / f"rank-{rank}.log" for rank in range(size))
            self._logs = [self._files.enter_context(path.open("ab", 0)) for path in paths]
        self._disk_full_reported = False
        self._tails = [b""] * size
        self._lines = {
            (rank, fd): LineSplitter() for rank in range(size) for fd in (STDOUT, STDERR)
        }
        stream = OutputStream()
        self._streams = {STDOUT: stream, STDERR: stream if is_same_output() else OutputStream()}
        self._held: list[tuple[int, bytes]] = []
        self._may_hold = True
        self._shown: set[int] = set()  # Ranks whose errors are shown, once the cause is known.
        self._hidden: set[int] = set()

    def receive(self, chunks: Sequence[tuple[int, int, bytes]]) -> None:
        """Take what the ranks wrote at one moment.

        Args:
            chunks: Rank, stream (1 or 2), and bytes; no bytes for the end of the stream.
        """
        for rank, fd, data in chunks:
            if fd == STDERR and ERROR_START.search(data):
                self.failed_ranks[rank] = time.monotonic()
                self.hold()
            elif fd == STDERR and PEER_LOSS.search(data):
                self.hold()
        for rank, fd, data in chunks:
            if self._logs:
                self._append(rank, data)
            if fd == STDERR:
                self._tails[rank] = (self._tails[rank] + data)[-TAIL_BYTES:]
            if fd == STDERR and self.held_since is not None:
                self._held.append((rank, data))
            elif fd == STDOUT or self._may_hold or self._may_show(rank):
                self._show(rank, fd, data)

    def _append(self, rank: int, data: bytes) -> None:
        """Append to a rank's file. A full disk does not end the job."""
        try:
            self._logs[rank].write(data)
        except OSError as error:
            if error.errno not in DISK_FULL_ERRORS:
                raise
            if not self._disk_full_reported:
                self.log(
                    f"{self._logs[rank].name}: {error.strerror}. Some output is missing there."
                )
            self._disk_full_reported = True

    def errors_of(self, rank: int) -> str:
        """Return the end of what a rank has written to standard error."""
        return self._tails[rank].decode(errors="replace")

    def forget_errors(self, before: float) -> None:
        """Forget the errors that ranks have survived: those of before a time."""
        self.failed_ranks = {
            rank: when for rank, when in self.failed_ranks.items() if when >= before
        }

    def log(self, text: str) -> None:
        """Show a message of the launcher on standard error."""
        line = f"distrib: {text}\n".encode(errors="backslashreplace")
        self._streams[STDERR].write_line(STDERR, line)

    def hold(self) -> None:
        """Hold standard error back from now on, unless a root cause has been shown."""
        if self.held_since is None and self._may_hold:
            self.held_since = time.monotonic()

    def release(self, cause: int | None) -> None:
        """Show what was held back.

        Args:
            cause: The rank that caused the failure, whose output comes first; `None` if unknown:
                then the rank that reported an error first does. Ranks with the same error, such as
                a module that is missing, are only named, and so are those after the first
                `MAX_SHOWN_RANKS`.
        """
        self._may_hold = cause is None
        self.held_since = None
        order = self.failed_ranks if cause is None else [cause, *self.failed_ranks]
        held: dict[int, list[bytes]] = {rank: [] for rank in order}
        for rank, data in self._held:
            held.setdefault(rank, []).append(data)
        self._held.clear()
        same: dict[bytes, list[int]] = {}
        for rank, chunks in held.items():
            error = _error_in(chunks)
            if error in same:
                same[error].append(rank)
            elif chunks and self._may_show(rank):
                if error:
                    same[error] = [rank]
                for data in chunks:
                    self._show(rank, STDERR, data)
        for first, *others in same.values():
            if others:
                self.log(f"the same error on {rank_numbers(others)} as on rank {first}")
        if cause is None:
            self._forget_shown()

    def _may_show(self, rank: int) -> bool:
        """Return whether a rank is among the first that have written errors of one moment."""
        if rank in self._shown or len(self._shown) < MAX_SHOWN_RANKS:
            self._shown.add(rank)
            return True
        self._hidden.add(rank)
        return False

    def _forget_shown(self) -> None:
        if self._hidden:
            self.log(f"{rank_numbers(self._hidden)} wrote errors too; --output-dir keeps them")
        self._shown.clear()
        self._hidden.clear()

    def flush(self) -> None:
        """Show lines that have waited long enough; to be called several times a second."""
        for stream in self._streams.values():
            stream.flush()

    def close(self) -> None:
        """Show everything that is held back or waits."""
        self.release(None)
        for stream in self._streams.values():
            stream.flush(force=True)
        self._files.close()

    def _show(self, rank: int, fd: int, data: bytes) -> None:
        if rank == 0:
            if shown := self._without_noise(rank, fd, data):
                self._streams[fd].write(fd, shown)
            return
        for line in self._lines[rank, fd].feed(data):
            if shown := self._without_noise(rank, fd, line + b"\n"):
                self._streams[fd].write_line(fd, b"[rank %d] %s" % (rank, shown))

    def _without_noise(self, rank: int, fd: int, data: bytes) -> bytes:
        return self._noise[rank].remove(data) if self._noise and fd == STDERR and data else data


def _error_in(chunks: Sequence[bytes]) -> bytes:
    """Return the error that a rank has reported, without what its libraries have logged."""
    text = b"".join(chunks)
    start = ERROR_START.search(text)
    return LOG_LINE.sub(b"", text[start.start() :]) if start else b""
