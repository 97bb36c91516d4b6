"""Runs all ranks to their ends: starts them, passes signals on, and lets nobody stay behind.

Nothing here waits for ever. A rank that was asked to stop has the time to save; one whose peer has
failed has the seconds to notice and to end by itself; then it is asked, and then it is killed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from distrib.errors import EXIT_FINISHED, EXIT_PREEMPTED

from .network import SSH_FAILED
from .outcome import End, cause, is_known
from .output import STDERR, STDOUT, Display
from .placement import Slot

CHUNK = 65536
TICK_SECONDS = 0.1
HOLD_SECONDS = 5.0  # For a rank that has complained to end; else it has not failed.
BEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0  # What a rank on another host lives on when it hears no beat.
NOTICE_SECONDS = 10.0  # For the other ranks to find out by themselves that one has failed.
LAST_SECONDS = 5.0  # From one means to the next stronger one.
ABANDON = 0  # Not a signal: what is left to do about a rank that even SIGKILL does not reach.
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Rank:
    """One rank, by its keeper: a child of the launcher, or an ssh connection to one.

    Args:
        slot: Its place.
        command: What starts the keeper.
        spec: What the keeper is told to run.
    """

    def __init__(self, slot: Slot, command: Sequence[str], spec: Mapping[str, Any]) -> None:
        self.slot = slot
        self.sent: set[int] = set()
        self._abandoned = False
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C is for the launcher, which passes it on.
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._stdin = self._process.stdin
        self.streams = {STDOUT: self._process.stdout, STDERR: self._process.stderr}
        self._tell(json.dumps(spec).encode() + b"\n")
        os.set_blocking(self._stdin.fileno(), False)

    def send(self, number: int) -> None:
        """Have a signal sent to the rank."""
        self.sent.add(number)
        self._tell(b"%d\n" % number)

    def beat(self) -> None:
        """Tell the keeper that the launcher is there."""
        self._tell(b"\n")

    def abandon(self) -> None:
        """Kill the keeper, or the connection; it dies of that if it can be reached at all."""
        self._abandoned = True
        self._process.kill()

    def exit_code(self) -> int | None:
        """Return the exit code, in a shell's manner, `None` while the rank runs."""
        code = self._process.poll()
        if code is not None and self._abandoned:
            return SSH_FAILED
        return 128 - code if code is not None and code < 0 else code

    def _tell(self, data: bytes) -> None:
        # A keeper that cannot hear has ended, or its connection will.
        with suppress(BrokenPipeError):
            while data:
                data = data[self._stdin.write(data) or len(data) :]


class Supervisor:
    """Brings the ranks of one attempt to their ends.

    Args:
        display: Where their output goes.
        grace: Seconds that a rank has for saving after a request to stop.
    """

    def __init__(self, display: Display, grace: float) -> None:
        self._display = display
        self._grace = grace
        self._ranks: list[Rank] = []
        self._ends: dict[int, End] = {}
        self._received: list[int] = []
        self._agenda: list[tuple[float, int]] = []
        self._interrupted = False
        self._pressed = False

    def run(self, jobs: Iterable[tuple[Slot, Sequence[str], Mapping[str, Any]]]) -> End | None:
        """Start the ranks, see them to their ends, and return the cause if not all finished.

        Args:
            jobs: What each `Rank` is made of.
        """
        with self._catching_signals(), selectors.DefaultSelector() as selector:
            for job in jobs:
                rank = Rank(*job)
                self._ranks.append(rank)
                for fd, stream in rank.streams.items():
                    selector.register(stream, selectors.EVENT_READ, (rank, fd))
            with self._beating():
                while len(self._ends) < len(self._ranks):
                    self._read(selector)
                    self._notice_ends()
                    self._judge()
                    self._pass_signals_on()
                    self._keep_time()
                    self._display.settle()
        end = cause(self._ends.values(), self._display.complaints)
        self._display.release(end.rank if end else None)
        return end

    @property
    def _running(self) -> list[Rank]:
        return [rank for rank in self._ranks if rank.slot.rank not in self._ends]

    def _read(self, selector: selectors.BaseSelector) -> None:
        chunks = []
        for key, _ in selector.select(TICK_SECONDS):
            rank, fd = key.data
            data = os.read(key.fd, CHUNK)
            chunks.append((rank.slot.rank, fd, data))
            if not data:
                selector.unregister(key.fileobj)
                rank.streams.pop(fd).close()
        self._display.receive(chunks)

    def _notice_ends(self) -> None:
        for rank in self._running:
            code = None if rank.streams else rank.exit_code()
            if code is None:
                continue
            # A lost connection is never the launcher's doing, even if it gives up before ssh does.
            by_launcher = code != SSH_FAILED and (self._pressed or code - 128 in rank.sent)
            slot = rank.slot
            self._ends[slot.rank] = end = End(slot.rank, slot.hostname, code, by_launcher)
            if code not in (EXIT_FINISHED, EXIT_PREEMPTED):
                self._display.hold()
            if not self._pressed:
                self._plan_after(end)

    def _judge(self) -> None:
        """Show what is held back as soon as it is known which rank is to blame, or too late."""
        ends, complaints = self._ends.values(), self._display.complaints
        end = cause(ends, complaints)
        since = self._display.held_since
        if end and is_known(end, ends, complaints):
            self._display.release(end.rank)
        elif since is not None and time.monotonic() - since > HOLD_SECONDS:
            self._display.release(None)
            if end is None:  # Whoever complained has lived on.
                complaints.clear()

    def _plan_after(self, end: End) -> None:
        if end.code == EXIT_PREEMPTED:  # The chief may still be saving.
            self._plan(self._grace, signal.SIGKILL)
        elif end.code != EXIT_FINISHED:
            self._plan(NOTICE_SECONDS, signal.SIGTERM)
            self._plan(NOTICE_SECONDS + LAST_SECONDS, signal.SIGKILL)

    def _pass_signals_on(self) -> None:
        while self._received:
            number = self._received.pop(0)
            name = signal.Signals(number).name
            if number == signal.SIGINT and self._interrupted:
                self._press(signal.SIGKILL)
                continue
            self._interrupted |= number == signal.SIGINT
            again = " Ctrl-C again kills them." if self._interrupted else ""
            self._display.say(
                f"{name}: asked all ranks to save and stop; they have {self._grace:g} s.{again}"
            )
            for rank in self._running:
                rank.send(signal.SIGTERM if number == signal.SIGHUP else number)
            self._plan(self._grace, signal.SIGKILL)

    def _plan(self, delay: float, number: int) -> None:
        """Have `_press` called later, unless it is to be called with the same before."""
        when = time.monotonic() + delay
        if all(planned != number or earlier > when for earlier, planned in self._agenda):
            self._agenda.append((when, number))

    def _keep_time(self) -> None:
        for item in sorted(self._agenda):
            if item[0] <= time.monotonic():
                self._agenda.remove(item)
                self._press(item[1])

    def _press(self, number: int) -> None:
        """Put an end to the ranks that still run; every means is followed by a stronger one."""
        if not self._running:
            return
        self._pressed = True
        names = ", ".join(str(rank.slot.rank) for rank in self._running)
        if number == ABANDON:
            self._display.say(f"giving up the connection to rank {names}")
        else:
            self._display.say(f"{signal.Signals(number).name} to rank {names}, which has not ended")
        for rank in self._running:
            if number == ABANDON:
                rank.abandon()
            else:
                rank.send(number)
        if number == signal.SIGKILL:
            self._plan(LAST_SECONDS, ABANDON)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Let the keepers know that the launcher is there, also while its own output is blocked."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT_SECONDS):
                for rank in self._ranks:
                    rank.beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        def note(number: int, _: FrameType | None) -> None:
            self._received.append(number)

        # `nohup` and shells set some to be ignored, and mean it.
        heeded = [number for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, note) for number in heeded}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
