"""The ledger of a run's attempts: which attempt may commit, and what was committed.

    <directory>/checkpoints/attempts/<number>.json

Every start of a run is an attempt. It takes the next number by creating the file of that name
exclusively. The file lists the checkpoints that exist at that moment. From then on older attempts
are fenced off: they check for a newer file before each commit, and stop if there is one. If an
older attempt is delayed between this check and its commit, the newer attempt does not know the
checkpoint, which is then late (see `commit.py`). So the protocol needs neither clocks nor leases.

An attempt updates its own file after each commit. So the next attempt does not depend on complete
listings, and knows how long earlier attempts ran, how far they came and how they ended.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from distrib.checkpoint.transfer import parallel_map
from distrib.environment import UNSUPERVISED, Supervision
from distrib.errors import SupersededError
from distrib.storage.location import Location

FOLDER = "attempts"
FINISHED, PREEMPTED, FAILED, GIVEN_UP = "finished", "preempted", "failed", "given up"


@dataclass(frozen=True, order=True)
class Commit:
    """A committed checkpoint: its step, and the attempt that committed it."""

    step: int
    attempt: int


@dataclass(frozen=True)
class Entry:
    """The entry of one attempt; the attributes are the keys of its JSON file.

    Attributes:
        attempt: Number of the attempt, from 1.
        token: Random; shows whether another process has overwritten the file.
        host: Host of the chief.
        pid: Process id of the chief.
        world_size: Number of processes.
        began: Start of the attempt, in seconds since 1970, UTC.
        updated: Last update of the entry, in seconds since 1970, UTC.
        end: `"finished"`, `"preempted"`, `"failed"` (an exception), or `"given up"` (before the
            first step, because earlier attempts made no progress). `None` if the attempt is running
            or was killed.
        known: Valid checkpoints of older attempts; `None` if the file is damaged, which makes all
            of them valid.
        committed: Checkpoints of this attempt.
        uptime: Total seconds of all earlier attempts, as far as recorded.
        failures: Number of earlier attempts that failed or were killed.
        start: First step; `None` if the attempt does not train, and in entries of old versions.
        allowed: Limit for consecutive attempts without progress, from the supervisor; 0 for no
            limit.
        stalled: Number of attempts directly before this one without progress.
        seen: The part of `stalled` that this attempt's supervisor has started.
        error: The exception that ended the attempt, in one line.
        before: How the attempt before ended, according to the supervisor.
        save_time: Seconds from the start of the run's last save to its commit; 0 if unknown.
    """

    attempt: int
    token: str
    host: str
    pid: int
    world_size: int
    began: float
    updated: float
    end: str | None
    known: tuple[Commit, ...] | None
    committed: tuple[Commit, ...]
    uptime: float
    failures: int
    start: int | None = None
    allowed: int = 0
    stalled: int = 0
    seen: int = 0
    error: str = ""
    before: str = ""
    save_time: float = 0.0

    def stalled_if_next_at(self, start: int | None) -> int:
        """Return the number of consecutive attempts without progress, up to and with this one.

        Progress is the step that the next attempt can start with, and not a commit: a checkpoint
        that was damaged later is no progress. The count restarts after a supervisor or an attempt
        has given up, because then a person has fixed something and started the job again. Attempts
        that only a person can restart do not count.

        Args:
            start: First step of the next attempt; `None` if it does not train.
        """
        if start is None or self.start is None or start > self.start:
            return 0
        supervisor_gives_up = self.seen + 1 >= self.allowed
        if self.end in (FINISHED, GIVEN_UP) or supervisor_gives_up:
            return 0
        return self.stalled + 1

    @property
    def commits(self) -> tuple[Commit, ...]:
        """All valid checkpoints; some may have been removed since."""
        return (self.known or ()) + self.committed

    def counts(self, commit: Commit) -> bool:
        """Return whether a checkpoint is valid (not late), if this is the newest attempt."""
        return self.known is None or commit.attempt >= self.attempt or commit in self.known

    def encode(self) -> bytes:
        """Return the content of the entry's file."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, content: bytes, attempt: int) -> Entry:
        """Decode the content of an attempt's file; if it is damaged, return an empty entry."""
        try:
            body = json.loads(content)
            for name in ("known", "committed"):
                if body[name] is not None:
                    body[name] = tuple(Commit(**commit) for commit in body[name])
            return cls(**body)
        except (ValueError, TypeError, KeyError):
            return cls(attempt, "", "unknown", 0, 1, 0.0, 0.0, None, None, (), 0.0, 0)


class Attempt:
    """The attempt of this process.

    Args:
        checkpoints: The folder of the run's checkpoints.
        entry: The attempt's entry in the ledger.
    """

    def __init__(self, checkpoints: Location, entry: Entry) -> None:
        self._ledger = checkpoints / FOLDER
        self._lock = threading.Lock()
        self.entry = entry

    @property
    def number(self) -> int:
        """The number of the attempt, from 1."""
        return self.entry.attempt

    def check(self) -> None:
        """Check that this is still the newest attempt.

        Raises:
            FileNotFoundError: If the attempt's entry was removed.
            SupersededError: If a newer attempt has begun.
        """
        own, newer = _read_with_next(self._ledger, self.number)
        if newer is not None:
            raise self._superseded(newer)
        if own is None:
            raise FileNotFoundError(f"{_path(self._ledger, self.number)} is gone")
        if own.token != self.entry.token:
            raise self._superseded(own)

    def committed(self, commit: Commit, save_time: float = 0.0) -> None:
        """Record a commit.

        Args:
            commit: The committed checkpoint.
            save_time: Seconds from the start of the save to the commit. Defaults to 0, for unknown.
        """
        self._update(committed=(*self.entry.committed, commit), save_time=save_time)

    def drop(self, steps: set[int]) -> None:
        """Drop removed checkpoints from the entry, with the next update of its file."""
        self.entry = replace(
            self.entry,
            known=tuple(c for c in self.entry.known or () if c.step not in steps),
            committed=tuple(c for c in self.entry.committed if c.step not in steps),
        )

    def ended(self, how: str, error: str = "") -> None:
        """Record the end of the attempt.

        Args:
            how: `FINISHED`, `PREEMPTED`, `FAILED` or `GIVEN_UP`.
            error: The exception, in one line. Defaults to none.
        """
        self._update(end=how, error=error)

    def _update(self, **changes: Any) -> None:
        with self._lock:  # A save may be committed while the process fails.
            self.entry = replace(self.entry, **changes, updated=time.time())
            _path(self._ledger, self.number).write_bytes(self.entry.encode())

    def _superseded(self, by: Entry) -> SupersededError:
        return SupersededError(
            f"Attempt {self.number} of this run (pid {os.getpid()} on {socket.gethostname()}) has "
            f"been superseded: attempt {by.attempt} (pid {by.pid} on {by.host}) has taken over "
            f"{self._ledger}. This process stops without damage; its earlier checkpoints stay "
            "valid. Give this job its own `directory` if both are meant to run."
        )


def read(checkpoints: Location, number: int) -> Entry | None:
    """Return the entry of an attempt; `None` if there is none."""
    return _read(checkpoints / FOLDER, number)


def newest(checkpoints: Location) -> Entry | None:
    """Return the entry of the newest attempt; `None` before the first."""
    ledger = checkpoints / FOLDER
    numbers = [int(name[:-5]) for name in ledger.names() if name[:-5].isdecimal()]
    number = max(numbers, default=0)
    entry, newer = _read_with_next(ledger, number)
    # A listing may be stale, but reads are not.
    while newer is not None:
        number += 1
        entry, newer = _read_with_next(ledger, number)
    return entry


def begin(
    checkpoints: Location,
    world_size: int,
    known: Callable[[Entry | None], tuple[Commit, ...]],
    start: int | None = None,
    supervisor: Supervision = UNSUPERVISED,
) -> Attempt:
    """Begin the next attempt.

    Args:
        checkpoints: The folder of the run's checkpoints.
        world_size: Number of processes.
        known: Returns the valid checkpoints, given the newest entry; called right before the
            attempt takes its number.
        start: First step. Defaults to `None`, for no training.
        supervisor: State of the job's supervisor. Defaults to none.
    """
    while True:
        previous = newest(checkpoints)
        valid = known(previous)
        # A copy of a run may lack the ledger, but its checkpoints have the numbers of attempts.
        numbers = [previous.attempt if previous else 0, *(commit.attempt for commit in valid)]
        now = time.time()
        entry = Entry(
            attempt=max(numbers) + 1,
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            world_size=world_size,
            began=now,
            updated=now,
            end=None,
            known=valid,
            committed=(),
            uptime=previous.uptime + previous.updated - previous.began if previous else 0.0,
            failures=previous.failures + (previous.end in (None, FAILED)) if previous else 0,
            start=start,
            allowed=supervisor.attempts,
            stalled=previous.stalled_if_next_at(start) if previous else 0,
            seen=supervisor.stalled,
            before=supervisor.last_end,
            save_time=previous.save_time if previous else 0.0,
        )
        if _path(checkpoints / FOLDER, entry.attempt).create(entry.encode()):
            return Attempt(checkpoints, entry)


def _read_with_next(ledger: Location, number: int) -> list[Entry | None]:
    return parallel_map(lambda number: _read(ledger, number), [number, number + 1], 2)


def _read(ledger: Location, number: int) -> Entry | None:
    try:
        content = _path(ledger, number).read_bytes()
    except FileNotFoundError:
        return None
    return Entry.decode(content, number)


def _path(ledger: Location, number: int) -> Location:
    return ledger / f"{number:08d}.json"
