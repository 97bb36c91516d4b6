"""The ledger of a run's attempts: who may commit, and what has been committed.

    <directory>/checkpoints/attempts/<number>.json

Every start of a run takes the next number by creating the file of that name, which only one process
can. The file says which checkpoints there were at that moment. From then on an older attempt is
fenced off: it finds the newer file when it looks, before each commit, and stops. Should it look,
be held up, and commit after the newer attempt has begun, its checkpoint is not among those that the
newer one knew, and does not count (see `commit.py`). So no clock and no lease is needed.

An attempt goes on writing its own file after each commit. So the next one need not trust a listing
to be complete, and knows for how long its forerunners ran, how far they came and how they ended.
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

from distrib.checkpoint.transfer import each
from distrib.environment import UNSUPERVISED, Supervision
from distrib.errors import SupersededError
from distrib.storage.location import Location

FOLDER = "attempts"
FINISHED, PREEMPTED, FAILED, GIVEN_UP = "finished", "preempted", "failed", "given up"


@dataclass(frozen=True, order=True)
class Commit:
    """One committed checkpoint: the step, and the attempt that committed it."""

    step: int
    attempt: int


@dataclass(frozen=True)
class Entry:
    """What the ledger says of one attempt.

    Attributes:
        attempt: Its number, from 1.
        token: Tells its own file from one that another process wrote over it.
        host: Where its chief runs.
        pid: The chief's process.
        world_size: Number of its processes.
        began: Seconds since 1970, UTC.
        updated: The same, when it last wrote here.
        end: `"finished"`, `"preempted"`, `"failed"` with an exception, `"given up"` before the
            first step because its forerunners had gained none, or `None` while it runs and if it
            died.
        known: Checkpoints committed by older attempts that count; `None` if the file cannot be
            read, and all of them do.
        committed: Checkpoints that it has committed itself.
        uptime: Seconds that all attempts before it ran, as far as they have told.
        failures: Attempts before it that died or failed.
        start: Step that it began with; `None` if it trains nothing, and in entries of old versions.
        allowed: How many attempts in a row may gain no step, by its supervisor's will; 0 for any
            number.
        stalled: How many attempts right before it have gained no step.
        seen: How many of them its supervisor has seen.
        error: The exception that it failed with, in a line.
        before: How the attempt before it ended, in its supervisor's words.
        save_time: Seconds that the run's last save took, until it was committed; 0 if unknown.
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
        """Return how many attempts in a row have gained no step if the next begins with `start`.

        What a commit says counts nothing here, but where the next attempt can go on: a checkpoint
        that has been damaged since is no gain. A row ends not only with a gain: when a supervisor
        or an attempt has given up, it is a person who starts the job again, and has mended
        something. Nor do attempts count that only a person could start again.

        Args:
            start: Step; `None` if the next one trains nothing.
        """
        if start is None or self.start is None or start > self.start:
            return 0
        for_a_person = self.seen + 1 >= self.allowed
        if self.end in (FINISHED, GIVEN_UP) or for_a_person:
            return 0
        return self.stalled + 1

    @property
    def commits(self) -> tuple[Commit, ...]:
        """All checkpoints that count, unless they have been removed meanwhile."""
        return (self.known or ()) + self.committed

    def counts(self, commit: Commit) -> bool:
        """Tell whether a checkpoint counts, this being the newest attempt."""
        return self.known is None or commit.attempt >= self.attempt or commit in self.known

    def encode(self) -> bytes:
        """Return the content of its file."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, content: bytes, attempt: int) -> Entry:
        """Return what the file of an attempt says, or that it is unreadable."""
        try:
            body = json.loads(content)
            for name in ("known", "committed"):
                if body[name] is not None:
                    body[name] = tuple(Commit(**commit) for commit in body[name])
            return cls(**body)
        except (ValueError, TypeError, KeyError):
            return cls(attempt, "", "unknown", 0, 1, 0.0, 0.0, None, None, (), 0.0, 0)


class Attempt:
    """This process's own attempt.

    Args:
        checkpoints: The folder of the run's checkpoints.
        entry: Its entry in the ledger.
    """

    def __init__(self, checkpoints: Location, entry: Entry) -> None:
        self._ledger = checkpoints / FOLDER
        self._lock = threading.Lock()
        self.entry = entry

    @property
    def number(self) -> int:
        """Number of the attempt, from 1."""
        return self.entry.attempt

    def check(self) -> None:
        """Make sure that this is still the newest attempt.

        Raises:
            SupersededError: If it is not.
        """
        own, newer = _read_with_next(self._ledger, self.number)
        if newer is not None:
            raise self._superseded(newer)
        if own is None:
            raise FileNotFoundError(f"{_place(self._ledger, self.number)} is gone")
        if own.token != self.entry.token:
            raise self._superseded(own)

    def committed(self, commit: Commit, save_time: float = 0.0) -> None:
        """Write a commit down.

        Args:
            commit: What was committed.
            save_time: Seconds that it took.
        """
        self._update(committed=(*self.entry.committed, commit), save_time=save_time)

    def forget(self, steps: set[int]) -> None:
        """Leave out checkpoints that were removed."""
        self.entry = replace(
            self.entry,
            known=tuple(c for c in self.entry.known or () if c.step not in steps),
            committed=tuple(c for c in self.entry.committed if c.step not in steps),
        )

    def ended(self, how: str, error: str = "") -> None:
        """Write down that the attempt has ended.

        Args:
            how: `FINISHED`, `PREEMPTED`, `FAILED` or `GIVEN_UP`.
            error: The exception, in a line.
        """
        self._update(end=how, error=error)

    def _update(self, **changes: Any) -> None:
        with self._lock:  # A save may be committed while the process fails.
            self.entry = replace(self.entry, **changes, updated=time.time())
            _place(self._ledger, self.number).write_bytes(self.entry.encode())

    def _superseded(self, by: Entry) -> SupersededError:
        return SupersededError(
            f"Attempt {self.number} of this run (pid {os.getpid()} on {socket.gethostname()}) has "
            f"been superseded: attempt {by.attempt} (pid {by.pid} on {by.host}) has taken over "
            f"{self._ledger}. This process stops and has damaged nothing; its checkpoints up to "
            "there were taken over. Give this job its own `directory` if both are meant to run."
        )


def read(checkpoints: Location, number: int) -> Entry | None:
    """Return the entry of an attempt; `None` if the ledger has none."""
    return _read(checkpoints / FOLDER, number)


def newest(checkpoints: Location) -> Entry | None:
    """Return the entry of the newest attempt; `None` before the first."""
    ledger = checkpoints / FOLDER
    numbers = [int(name[:-5]) for name in ledger.names() if name[:-5].isdecimal()]
    number = max(numbers, default=0)
    entry, newer = _read_with_next(ledger, number)
    # A listing may be late; whether a file is there is always known.
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
    """Take the next number.

    Args:
        checkpoints: The folder of the run's checkpoints.
        world_size: Number of processes.
        known: Returns the checkpoints that count, given the newest entry; asked right before.
        start: Step that the attempt begins with; `None` if it trains nothing.
        supervisor: What the job's supervisor says.
    """
    while True:
        previous = newest(checkpoints)
        counting = known(previous)
        # A copy may lack the ledger; the folders of its checkpoints have their attempts' names.
        numbers = [previous.attempt if previous else 0, *(commit.attempt for commit in counting)]
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
            known=counting,
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
        if _place(checkpoints / FOLDER, entry.attempt).create(entry.encode()):
            return Attempt(checkpoints, entry)


def _read_with_next(ledger: Location, number: int) -> list[Entry | None]:
    return each(lambda number: _read(ledger, number), [number, number + 1], 2)


def _read(ledger: Location, number: int) -> Entry | None:
    try:
        content = _place(ledger, number).read_bytes()
    except FileNotFoundError:
        return None
    return Entry.decode(content, number)


def _place(ledger: Location, number: int) -> Location:
    return ledger / f"{number:08d}.json"
