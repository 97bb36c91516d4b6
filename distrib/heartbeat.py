"""Heartbeats: the progress that a rank reports to its supervisor.

`distrib run` passes every rank the writing end of a pipe, named by `DISTRIB_HEARTBEAT`. While `fit`
makes progress (after batches, during saves), the rank writes a line of JSON to it every 0.5 s. From
these lines the supervisor learns whether a rank hangs, which step the run has reached, which
checkpoint is committed, and which rank is slow. Outside of `fit` a script may take any time, but a
rank also reports when it enters and leaves a collective, so that the supervisor notices ranks that
wait for each other in vain. A rank without a supervisor writes nothing.

A busy supervisor must not stop the training, so a line that does not fit into the pipe is dropped.
Every line holds all facts, so the next one makes up for it.

The pipe belongs to the rank alone: a forked child closes it, and other children do not inherit it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

VARIABLE = "DISTRIB_HEARTBEAT"
INTERVAL_SECONDS = 0.5
# The phases: before and after `fit`; in `fit` before its first batch; from then on.
OUTSIDE, STARTING, TRAINING = "outside", "starting", "training"
# A line must fit into PIPE_BUF.
_MAX_PLACE, _MAX_DIRECTORY = 500, 300


class Heartbeat:
    """The heartbeat of one process.

    Args:
        fd: Writing end of the pipe; `None` if there is no supervisor.

    Attributes:
        phase: The present phase.
        progressed_at: Time of the last progress, by `time.monotonic()`.
        longest_pause: Seconds of the longest time without progress between two steps.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self.phase = OUTSIDE
        self.progressed_at = time.monotonic()
        self.longest_pause = 0.0
        self._facts: dict[str, Any] = {"phase": OUTSIDE}
        self._next_time = 0.0
        self._lock = threading.Lock()

    @property
    def connected(self) -> bool:
        """Whether a supervisor reads the heartbeat."""
        return self._fd is not None

    @property
    def due(self) -> bool:
        """Whether the next heartbeat writes a line, because the interval has passed."""
        return self._fd is not None and time.monotonic() >= self._next_time

    def enter(self, phase: str) -> None:
        """Report a new phase at once, and the present phase once an interval."""
        now = time.monotonic()
        changed = phase != self.phase
        if phase == STARTING:
            self.longest_pause = 0.0
        elif phase == TRAINING and not changed:
            self.longest_pause = max(self.longest_pause, now - self.progressed_at)
        self.phase, self.progressed_at = phase, now
        if self._fd is not None and (changed or now >= self._next_time):
            self._next_time = now + INTERVAL_SECONDS
            self._send(phase=phase)

    def beat(self) -> None:
        """Report progress of `fit`, once an interval."""
        if self.phase != OUTSIDE:
            self.enter(self.phase)

    def note(self, **facts: Any) -> None:
        """Keep facts for the next line.

        Args:
            facts: JSON values with one or more of these names. `step`: number of batches trained
                since the run began. `wait_seconds`: seconds that this rank has spent in the
                exchange of gradients.
        """
        if self._fd is not None:
            with self._lock:
                self._facts.update(facts)

    def begin_run(self, directory: str, step: int, found: bool) -> None:
        """Report at once that a `fit` begins; only the chief calls this.

        Args:
            directory: Where its checkpoints are.
            step: With which it begins.
            found: Whether it has found a checkpoint there.
        """
        if self._fd is not None:
            if len(directory) > _MAX_DIRECTORY:
                directory = f"...{directory[-_MAX_DIRECTORY:]}"
            self._send(run=directory, found=found, resumed=step, committed=step, finished=False)

    def end_run(self) -> None:
        """Report at once that the training of the `fit` has finished."""
        if self._fd is not None:
            self._send(finished=True)

    def committed(self, step: int) -> None:
        """Report at once that the checkpoint of a step is committed; thread-safe."""
        if self._fd is not None:
            self._send(committed=step)

    def enter_collective(self, name: str, place: str) -> None:
        """Report at once that this rank waits for the others in a collective.

        Args:
            name: Of the collective; the others must be in one of the same name.
            place: Where the script has called it.
        """
        if self._fd is not None:
            number = self._facts.get("collectives", 0) + 1
            self._send(collectives=number, collective=name, place=place[:_MAX_PLACE])

    def leave_collective(self) -> None:
        """Report at once that the collective has succeeded."""
        if self._fd is not None:
            self._send(collective=None)

    def disconnect(self) -> None:
        """Close the pipe of a supervisor that is not this process's own."""
        self._lock = threading.Lock()  # Another thread may have held it when this process forked.
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _send(self, **facts: Any) -> None:
        with self._lock:
            self._facts.update(facts)
            # Unescaped: an escaped character may take 12 bytes, and UTF-8 at most 4.
            line = json.dumps(self._facts, ensure_ascii=False).encode(errors="replace") + b"\n"
            try:
                # At most PIPE_BUF bytes, so the write is atomic.
                os.write(self._fd, line)  # type: ignore[arg-type]
            except BlockingIOError:
                pass
            except BrokenPipeError:  # The rank agent has died, so this process soon will.
                self._fd = None


def connect(environment: Mapping[str, str] = os.environ) -> Heartbeat:
    """Return the heartbeat of this process.

    A child process inherits the variable but not the pipe, and may have another file open under the
    pipe's number. So the variable also names the pipe's inode.

    Args:
        environment: Environment variables of the process. Defaults to `os.environ`.
    """
    fd, _, inode = environment.get(VARIABLE, "").partition(":")
    if not (fd.isdecimal() and inode.isdecimal()):
        return Heartbeat(None)
    try:
        is_ours = os.fstat(int(fd)).st_ino == int(inode)
    except OSError:
        is_ours = False
    if not is_ours:
        return Heartbeat(None)
    os.set_inheritable(int(fd), False)  # `os.system`, for one, passes on all that is inheritable.
    return Heartbeat(int(fd))


heartbeat = connect()
os.register_at_fork(after_in_child=heartbeat.disconnect)
