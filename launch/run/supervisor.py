"""Runs all ranks of an attempt to their ends: starts them, forwards signals, leaves none behind."""

from __future__ import annotations

import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distrib.errors import EXIT_FINISHED, EXIT_PREEMPTED

from ..hosts.channel import LOST, Channel
from ..hosts.names import host_names, rank_name
from ..hosts.placement import RankPlacement
from ..process.signals import Signals
from .deadlock import DeadlockDetector
from .escalation import Escalation
from .failure import RankExit
from .hang_detector import HangDetector
from .output import Display
from .rank_exits import RankExits
from .rank_process import RankProcess
from .run_directories import RunDirectories

POLL_SECONDS = 0.1
CHECK_SECONDS = 0.5  # Between two looks at all ranks, whose time grows with their number.
HOLD_SECONDS = 9.0  # A rank that has written an error and runs on for so long has not failed.
SAME_ERROR_SECONDS = 1.0  # Between the ends of ranks that fail for the same reason.
KEEPALIVE_SECONDS = 5.0


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended.

    Attributes:
        cause: The root cause of its failure; `None` if all ranks finished.
        hang: What was wrong if the ranks were ended because they made no progress.
        mistake: What the script does wrong, if that is known: another attempt would end the same.
    """

    cause: RankExit | None
    hang: str | None
    mistake: str | None = None


class Supervisor:
    """Runs the ranks of one attempt to their ends.

    Args:
        display: Where their output goes.
        grace: Seconds that a rank has for saving after a request to stop.
        signals: Signals that the launcher has received.
        detector: Follows the ranks' heartbeats.
        preempted_hosts: Returns names of hosts that announced that they will stop, each once.
        tick: Called several times a second.
        runs: Follows where the chief saves. Defaults to that of a single attempt.
        follow: Called with each heartbeat; may return a message for the user.
    """

    def __init__(
        self,
        display: Display,
        grace: float,
        signals: Signals,
        detector: HangDetector,
        preempted_hosts: Callable[[], Iterable[str]] = tuple,
        tick: Callable[[], None] = lambda: None,
        runs: RunDirectories | None = None,
        follow: Callable[[int, Mapping[str, Any]], str | None] = lambda rank, facts: None,
    ) -> None:
        self._display = display
        self._signals = signals
        self._detector = detector
        self._deadlocks = DeadlockDetector(detector.last_heartbeats)
        self._preempted_hosts = preempted_hosts
        self._tick = tick
        self._runs = runs or RunDirectories()
        self._running: dict[int, RankProcess] = {}
        self._running_placements: list[RankPlacement] = []
        self._silent: list[int] = []  # Ranks of which only the exit code is not known yet.
        self._follow = follow
        self._exits = RankExits(display)
        self._next_check = 0.0
        self._interrupted = False
        self._escalation = Escalation(self._running, grace, display.log, self._exits.note_errors)
        self._hang: str | None = None
        self._deadlock: str | None = None

    def run(
        self, ranks: Iterable[tuple[RankPlacement, Channel, Mapping[str, Any]]]
    ) -> AttemptResult:
        """Start the ranks, supervise them until all have ended, and return why they did.

        Args:
            ranks: The arguments of a `RankProcess` for each rank.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals.wakeup_fd, selectors.EVENT_READ)
            for arguments in ranks:
                rank = RankProcess(*arguments)
                self._running[rank.placement.rank] = rank
                for stream, fd in rank.open_fds.items():
                    selector.register(fd, selectors.EVENT_READ, (rank, stream))
                if not rank.open_fds:
                    self._silent.append(rank.placement.rank)
            self._running_placements = [rank.placement for rank in self._running.values()]
            with self._keepalives():
                while self._running:
                    self._read(selector)
                    self._collect_exits()
                    self._forward_signals()
                    self._stop_for_preempted_hosts()
                    if time.monotonic() >= self._next_check:
                        self._check()
                    self._escalation.send_due()
                    self._display.flush()
                    self._tick()
        cause = self._exits.cause()
        self._display.release(cause.rank if cause else None)
        return AttemptResult(cause, self._hang, self._deadlock or self._early_finish(cause))

    def _check(self) -> None:
        """Look at all ranks."""
        self._release_output()
        self._end_deadlock()
        self._end_hang()
        self._report_slow_ranks()
        self._next_check = time.monotonic() + CHECK_SECONDS

    def _read(self, selector: selectors.BaseSelector) -> None:
        chunks = []
        for key, _ in selector.select(POLL_SECONDS):
            if key.data is None:  # A signal, which `_forward_signals` handles.
                continue
            rank, stream = key.data
            output, heartbeats = rank.read(stream)
            chunks += [(rank.placement.rank, fd, data) for fd, data in output]
            for facts in heartbeats:
                self._detector.record(rank.placement.rank, facts)
                self._follow_run(rank.placement, facts)
                if message := self._follow(rank.placement.rank, facts):
                    self._display.log(message)
            if stream not in rank.open_fds:
                selector.unregister(key.fd)
                if not rank.open_fds:
                    self._silent.append(rank.placement.rank)
        self._display.receive(chunks)

    def _follow_run(self, placement: RankPlacement, facts: Mapping[str, Any]) -> None:
        """End the ranks if they repeat the whole training."""
        if placement.rank == 0 and (message := self._runs.record(placement.hostname, facts)):
            self._display.log(message)
        if self._runs.refusal and not self._escalation.has_begun:
            self._escalation.end_now(signal.SIGTERM)

    def _collect_exits(self) -> None:
        for rank in [self._running[number] for number in self._silent]:
            code = rank.exit_code()
            if code is None:
                continue
            # The launcher never causes a lost connection, even if it gives up before ssh does.
            by_launcher = code != LOST and (self._escalation.has_begun or code - 128 in rank.sent)
            rank_exit = self._exits.add(rank.placement, code, by_launcher)
            if code not in (EXIT_FINISHED, EXIT_PREEMPTED):
                self._display.hold()
            self._escalation.after_exit(rank_exit)
        if ended := self._running.keys() & self._exits.ranks:
            self._silent = [number for number in self._silent if number not in ended]
            for number in ended:
                del self._running[number]
            self._running_placements = [rank.placement for rank in self._running.values()]

    def _release_output(self) -> None:
        """Show held-back output once the root cause is known, or after `HOLD_SECONDS`."""
        cause = self._exits.cause()
        since = self._display.held_since
        if cause and self._exits.is_final(cause):
            if time.monotonic() - self._exits.first_failure > SAME_ERROR_SECONDS:
                self._display.release(cause.rank)
        elif since is not None and time.monotonic() - since > HOLD_SECONDS:
            self._display.release(None)
            if cause is None:  # The ranks that have written an error survived it.
                self._display.forget_errors(time.monotonic() - HOLD_SECONDS)

    def _forward_signals(self) -> None:
        for number in self._signals.take():
            name = signal.Signals(number).name
            if number == signal.SIGINT and self._interrupted:
                self._escalation.end_now(signal.SIGKILL)
                continue
            self._interrupted |= number == signal.SIGINT
            again = " Ctrl-C again kills them." if self._interrupted else ""
            grace = f"{self._escalation.grace:g} s"
            self._display.log(f"{name}: asked all ranks to save and stop within {grace}.{again}")
            for rank in self._running.values():
                rank.signal(signal.SIGTERM if number == signal.SIGHUP else number)
            self._escalation.after_request()

    def _stop_for_preempted_hosts(self) -> None:
        """Send SIGTERM to the ranks of hosts that will stop; all ranks then agree to stop."""
        hosts = set(self._preempted_hosts())
        if not hosts:
            return
        were = "was" if len(hosts) == 1 else "were"
        self._display.log(f"{host_names(hosts)} {were} asked to stop: all ranks save and stop.")
        for rank in self._running.values():
            if rank.placement.hostname in hosts:
                rank.signal(signal.SIGTERM)
        self._escalation.after_request()

    def _end_hang(self) -> None:
        if self._escalation.is_planned:
            return
        self._hang = self._detector.find_hang(self._running_placements)
        if self._hang is not None:
            self._display.log(self._hang)
            # Python prints all stacks and ends (faulthandler), even while it is stuck in C code.
            self._escalation.end_now(signal.SIGABRT)

    def _end_deadlock(self) -> None:
        if self._escalation.is_planned:
            return
        # All that have ended have finished: after any other exit, signals are scheduled.
        self._deadlock = self._deadlocks.find(self._running_placements, self._exits.finished)
        if self._deadlock is not None:
            self._display.log(self._deadlock)
            self._escalation.end_now(signal.SIGTERM)

    def _early_finish(self, cause: RankExit | None) -> str | None:
        """Return a message if a rank has ended with 0 although another one needed it."""
        early = self._exits.early_finish(cause) if cause else None
        if cause is None or early is None:
            return None
        places = (self._deadlocks.place_of(rank_exit.rank) for rank_exit in (early, cause))
        own, others = (f" ({place})" if place else "" for place in places)
        return (
            f"{early}{own} while {rank_name(cause.rank, cause.host)} still needed it{others}, and "
            "so lost it"
        )

    def _report_slow_ranks(self) -> None:
        for find in (self._detector.find_stragglers, self._deadlocks.find_long_wait):
            message = find(self._running_placements)
            if message is not None:
                self._display.log(message)

    @contextmanager
    def _keepalives(self) -> Iterator[None]:
        """Send keepalives to the rank agents, also while the launcher's own output is blocked."""
        done = threading.Event()

        def send() -> None:
            while not done.wait(KEEPALIVE_SECONDS):
                for rank in list(self._running.values()):
                    rank.send_keepalive()

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
