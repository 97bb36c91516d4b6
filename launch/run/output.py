"""One screen for all ranks: what rank 0 writes as it is, what others write as whole, marked lines.

When a job fails, the ranks that lost their peer often complain before the one that is to blame has
ended, and more of them do. So from the first sign of a failure on, standard error is held back for
the seconds it takes to know the cause, and then shown in the order that helps: the cause first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ..process.terminal import NO_ROOM, STDERR, STDOUT, is_one_terminal, write

PATIENCE_SECONDS = 0.2
LONGEST_LINE = 65536
TAIL_BYTES = 16384
# How Python and C++ begin when they report an error that they may not survive.
COMPLAINT = re.compile(
    rb"^(Traceback \(most recent call last\)|terminate called|Fatal Python error)", re.MULTILINE
)
# What Horovod says first when it has lost a peer, and hardly ever else.
OMEN = re.compile(rb"[Hh]orovod")
# What TensorFlow 2.21 says at its start whatever TF_CPP_MIN_LOG_LEVEL is.
CHATTER = re.compile(
    rb"I\d{4} \d\d:\d\d:[\d.]+ +\d+ \S+:\d+\] |"
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called "
)


class Place:
    """Where lines go: a terminal, a file or a pipe, perhaps for both streams."""

    def __init__(self) -> None:
        self._unfinished_since: float | None = None
        self._waiting: list[tuple[int, bytes]] = []

    def write(self, fd: int, data: bytes) -> None:
        """Show bytes at once."""
        write(fd, data)
        if data.endswith(b"\n"):
            self._unfinished_since = None
        elif self._unfinished_since is None:
            self._unfinished_since = time.monotonic()

    def write_line(self, fd: int, line: bytes) -> None:
        """Show a line as soon as it does not break into one that is being written."""
        self._waiting.append((fd, line))
        self.settle()

    def settle(self, now: bool = False) -> None:
        """Show lines that wait, if none is unfinished, or one is so for good."""
        if not self._waiting:
            return
        if self._unfinished_since is not None:
            if not now and time.monotonic() - self._unfinished_since < PATIENCE_SECONDS:
                return
            write(self._waiting[0][0], b"\n")
            self._unfinished_since = None
        for fd, line in self._waiting:
            write(fd, line)
        self._waiting.clear()


class Lines:
    """Cuts a stream into lines, as a terminal would show them in the end."""

    def __init__(self) -> None:
        self._rest = b""

    def cut(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete, without their ends; no data means no more."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) > LONGEST_LINE):
            lines.append(self._rest)
            self._rest = b""
        # A progress bar is a line that was written over many times.
        return [line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines]


class Display:
    """Shows and keeps what the ranks write.

    Args:
        folder: Where each rank's output is appended to `rank-<n>.log`; `None` for nowhere.
        size: Number of ranks.
        quiet: Whether to show TensorFlow's information of rank 0 only.

    Attributes:
        complaints: Ranks that have reported an error on standard error, in that order.
        held_since: Since when standard error is held back, `None` if it is not.
    """

    def __init__(self, folder: Path | None, size: int, quiet: bool = False) -> None:
        self.complaints: list[int] = []
        self.held_since: float | None = None
        self._quiet = quiet
        self._files = ExitStack()
        self._logs = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            paths = (folder / f"rank-{rank}.log" for rank in range(size))
            self._logs = [self._files.enter_context(path.open("ab", 0)) for path in paths]
        self._told_of_no_room = False
        self._tails = [b""] * size
        self._lines = {(rank, fd): Lines() for rank in range(size) for fd in (STDOUT, STDERR)}
        place = Place()
        self._places = {STDOUT: place, STDERR: place if is_one_terminal() else Place()}
        self._held: list[tuple[int, bytes]] = []
        self._may_hold = True

    def receive(self, chunks: Sequence[tuple[int, int, bytes]]) -> None:
        """Take what was written at one moment.

        Args:
            chunks: Of which rank, on which stream (1 or 2), and what; nothing for its end.
        """
        for rank, fd, data in chunks:
            if fd == STDERR and COMPLAINT.search(data) and rank not in self.complaints:
                self.complaints.append(rank)
            if fd == STDERR and (COMPLAINT.search(data) or OMEN.search(data)):
                self.hold()
        for rank, fd, data in chunks:
            if self._logs:
                self._keep(rank, data)
            if fd == STDERR:
                self._tails[rank] = (self._tails[rank] + data)[-TAIL_BYTES:]
            if fd == STDERR and self.held_since is not None:
                self._held.append((rank, data))
            else:
                self._show(rank, fd, data)

    def _keep(self, rank: int, data: bytes) -> None:
        """Append to a rank's file. A full disk is no reason to end the job."""
        try:
            self._logs[rank].write(data)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if not self._told_of_no_room:
                self.say(
                    f"{self._logs[rank].name}: {error.strerror}. Output is missing from there."
                )
            self._told_of_no_room = True

    def last_error(self, rank: int) -> str:
        """Return what a rank's last traceback on standard error ends with, or nothing."""
        _, found, after = self._tails[rank].rpartition(b"Traceback (most recent call last)")
        lines = after.splitlines()[1:] if found else []
        names = (line.decode(errors="replace") for line in lines if line[:1].strip())
        return next(names, "")

    def say(self, text: str) -> None:
        """Show a line of the launcher's own on standard error."""
        self._places[STDERR].write_line(STDERR, f"distrib: {text}\n".encode())

    def hold(self) -> None:
        """Hold standard error back from now on, unless a cause has been shown."""
        if self.held_since is None and self._may_hold:
            self.held_since = time.monotonic()

    def release(self, cause: int | None) -> None:
        """Show what was held back.

        Args:
            cause: The rank that is to blame, whose output comes first; `None` if that is not known,
                then it is who complained first.
        """
        self._may_hold = cause is None
        self.held_since = None
        first = self.complaints if cause is None else [cause, *self.complaints]
        for rank in dict.fromkeys([*first, *(rank for rank, _ in self._held)]):
            for its_rank, data in self._held:
                if its_rank == rank:
                    self._show(rank, STDERR, data)
        self._held.clear()

    def settle(self) -> None:
        """Show lines that have waited long enough; to be called several times a second."""
        for place in self._places.values():
            place.settle()

    def close(self) -> None:
        """Show all that waits."""
        self.release(None)
        for place in self._places.values():
            place.settle(now=True)
        self._files.close()

    def _show(self, rank: int, fd: int, data: bytes) -> None:
        if rank == 0:
            if data:
                self._places[fd].write(fd, data)
            return
        for line in self._lines[rank, fd].cut(data):
            if not (self._quiet and fd == STDERR and CHATTER.match(line)):
                self._places[fd].write_line(fd, b"[rank %d] %s\n" % (rank, line))
