"""Runs all ranks to their ends: starts them, passes signals on, and lets nobody stay behind.

Nothing here waits for ever. A rank that was asked to stop has the time to save; one whose peer has
failed has the seconds to notice and to end by itself; then it is asked, and then it is killed.
Ranks that hang are made to show where, and are killed too.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distrib.errors import EXIT_FINISHED, EXIT_PREEMPTED

from ..hosts.channel import LOST, Frames, Link
from ..hosts.placement import Slot
from ..process.signals import Signals
from ..process.terminal import STDOUT
from .failure import End, cause, is_known
from .liveness import Watch
from .output import Display

CHUNK = 65536
TICK_SECONDS = 0.1
HOLD_SECONDS = 9.0  # For a rank that has complained to end; else it has not failed.
BEAT_SECONDS = 5.0
NOTICE_SECONDS = 10.0  # For the other ranks to find out by themselves that one has failed.
LAST_SECONDS = 5.0  # From one means to the next stronger one.
ABANDON = 0  # Not a signal: what is left to do about a rank that even SIGKILL does not reach.


class Rank:
    """One rank, by the connection to its keeper.

    Args:
        slot: Its place.
        link: To a keeper that waits to be told what to run.
        spec: What that is.

    Attributes:
        open: File descriptors that may still be read, by stream.
        sent: Signals that it got.
    """

    def __init__(self, slot: Slot, link: Link, spec: Mapping[str, Any]) -> None:
        self.slot = slot
        self.sent: set[int] = set()
        self.open = dict(link.sources)
        self._link = link
        self._frames = Frames()
        self._abandoned = False
        link.tell(json.dumps(spec).encode() + b"\n")

    def read(self, stream: int) -> tuple[list[tuple[int, bytes]], list[Mapping[str, Any]]]:
        """Take what has come: output of the rank, by stream, and its signs of life."""
        try:
            data = os.read(self.open[stream], CHUNK)
        except OSError:  # Reset, timed out, no route: whatever it is, it is lost.
            data = b""
        if not data:
            del self.open[stream]
            return [(stream, b"")], []
        # What is on the keeper's standard error is a complaint of its own, or of ssh.
        return self._frames.take(data) if stream == STDOUT else ([(stream, data)], [])

    def send(self, number: int) -> None:
        """Have a signal sent to the rank."""
        self.sent.add(number)
        self._link.tell(b"%d\n" % number)

    def beat(self) -> None:
        """Tell the keeper that the launcher is there."""
        self._link.tell(b"\n")

    def abandon(self) -> None:
        """Give the connection up."""
        self._abandoned = True
        self._link.cut()

    def exit_code(self) -> int | None:
        """Return the exit code, in a shell's manner, or `LOST`; `None` while the rank runs."""
        if self.open:
            return None
        code = self._frames.exit_code
        if code is None:
            code = LOST if self._abandoned else self._link.failure()
        if code is not None:
            self._link.close()
        return code


@dataclass(frozen=True)
class Result:
    """How an attempt ended.

    Attributes:
        end: The cause; `None` if all ranks finished.
        hang: What was wrong if the ranks had to be ended because they got on no more.
    """

    end: End | None
    hang: str | None


class Supervisor:
    """Brings the ranks of one attempt to their ends.

    Args:
        display: Where their output goes.
        grace: Seconds that a rank has for saving after a request to stop.
        signals: What the launcher is asked to do.
        watch: What the ranks' signs of life tell.
        leaving: Returns names of hosts that are about to go, once each.
        tick: Called several times a second.
    """

    def __init__(
        self,
        display: Display,
        grace: float,
        signals: Signals,
        watch: Watch,
        leaving: Callable[[], Iterable[str]] = tuple,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._display = display
        self._grace = grace
        self._signals = signals
        self._watch = watch
        self._leaving = leaving
        self._tick = tick
        self._ranks: list[Rank] = []
        self._ends: dict[int, End] = {}
        self._agenda: list[tuple[float, int]] = []
        self._interrupted = False
        self._pressed = False
        self._hang: str | None = None

    def run(self, jobs: Iterable[tuple[Slot, Link, Mapping[str, Any]]]) -> Result:
        """Start the ranks, see them to their ends, and return how those came about.

        Args:
            jobs: What each `Rank` is made of.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals.waker, selectors.EVENT_READ)
            for job in jobs:
                rank = Rank(*job)
                self._ranks.append(rank)
                for stream, fd in rank.open.items():
                    selector.register(fd, selectors.EVENT_READ, (rank, stream))
            with self._beating():
                while len(self._ends) < len(self._ranks):
                    self._read(selector)
                    self._notice_ends()
                    self._judge()
                    self._pass_signals_on()
                    self._notice_hang()
                    self._notice_stragglers()
                    self._keep_time()
                    self._display.settle()
                    self._tick()
        end = cause(self._ends.values(), self._display.complaints)
        self._display.release(end.rank if end else None)
        return Result(end, self._hang)

    @property
    def _running(self) -> list[Rank]:
        return [rank for rank in self._ranks if rank.slot.rank not in self._ends]

    def _read(self, selector: selectors.BaseSelector) -> None:
        chunks = []
        for key, _ in selector.select(TICK_SECONDS):
            if key.data is None:  # A signal; it is dealt with below.
                continue
            rank, stream = key.data
            output, beats = rank.read(stream)
            chunks += [(rank.slot.rank, fd, data) for fd, data in output]
            for facts in beats:
                self._watch.hear(rank.slot.rank, facts)
            if stream not in rank.open:
                selector.unregister(key.fd)
        self._display.receive(chunks)

    def _notice_ends(self) -> None:
        for rank in self._running:
            code = rank.exit_code()
            if code is None:
                continue
            # A lost connection is never the launcher's doing, even if it gives up before ssh does.
            by_launcher = code != LOST and (self._pressed or code - 128 in rank.sent)
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
        for number in self._signals.take():
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
        for host in self._leaving():
            self._display.say(f"{host} is about to go: all ranks save and stop.")
            for rank in self._running:
                if rank.slot.hostname == host:
                    rank.send(signal.SIGTERM)
            self._plan(self._grace, signal.SIGKILL)

    def _notice_hang(self) -> None:
        if self._pressed or self._agenda:  # It is ending already.
            return
        self._hang = self._watch.hang([rank.slot for rank in self._running])
        if self._hang is not None:
            self._display.say(self._hang)
            # Python shows all stacks and ends (faulthandler), also where it is stuck in C.
            self._press(signal.SIGABRT)
            self._plan(LAST_SECONDS, signal.SIGKILL)

    def _notice_stragglers(self) -> None:
        slow = self._watch.stragglers([rank.slot for rank in self._running])
        if slow is not None:
            self._display.say(slow)

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
