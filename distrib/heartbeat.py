"""Signs of life: what a rank tells its supervisor as it goes.

`distrib run` gives every rank the writing end of a pipe, named by `DISTRIB_HEARTBEAT`. Into it goes
a line of JSON now and then while `fit` gets on: after batches, during saves. From those lines the
supervisor knows that nothing hangs, how far the run has come, what is committed, and who is slow.
What a script does outside of `fit` may take as long as it likes. A rank that nobody listens to
writes nothing, and pays for that with one comparison.

A supervisor that is busy must not stop the training, so what the pipe has no room for is dropped;
the next line says it again, because each one holds all that is known.
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
# Before and after `fit`; in it, up to the first batch; and from then on.
OUTSIDE, STARTING, TRAINING = "outside", "starting", "training"


class Heartbeat:
    """The lines of one process.

    Args:
        fd: Writing end of the pipe; `None` for nobody.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._facts: dict[str, Any] = {"phase": OUTSIDE}
        self._next = 0.0
        self._lock = threading.Lock()

    @property
    def listened(self) -> bool:
        """Whether anybody listens."""
        return self._fd is not None

    @property
    def due(self) -> bool:
        """Whether the next sign of life will be a line."""
        return self._fd is not None and time.monotonic() >= self._next

    def enter(self, phase: str) -> None:
        """Say at once that a phase begins, or now and then that it goes on."""
        if self._fd is None:
            return
        now = time.monotonic()
        if now >= self._next or self._facts["phase"] != phase:
            self._next = now + INTERVAL_SECONDS
            self._send(phase=phase)

    def beat(self) -> None:
        """Say now and then that `fit` gets on."""
        if self._fd is not None and self._facts["phase"] != OUTSIDE:
            self.enter(self._facts["phase"])

    def note(self, **facts: Any) -> None:
        """Keep facts for the next line.

        Args:
            facts: JSON-able, of one or more of these names. `step`: batches trained since the run
                began. `resumed`: step that this process began with. `committed`: step of the newest
                checkpoint. `wait_seconds`: seconds that this rank has waited for others' gradients.
        """
        if self._fd is not None:
            with self._lock:
                self._facts.update(facts)

    def committed(self, step: int) -> None:
        """Say at once that the checkpoint of a step is committed; any thread may."""
        if self._fd is not None:
            self._send(committed=step)

    def _send(self, **facts: Any) -> None:
        with self._lock:
            self._facts.update(facts)
            line = json.dumps(self._facts).encode() + b"\n"
            try:
                # At most PIPE_BUF bytes, so all of it or nothing.
                os.write(self._fd, line)  # type: ignore[arg-type]
            except BlockingIOError:
                pass
            except BrokenPipeError:  # The rank agent is gone, and this process will be soon.
                self._fd = None


def connect(environment: Mapping[str, str] = os.environ) -> Heartbeat:
    """Return the heartbeat of this process.

    A child that inherits the variable but not the pipe, as of `subprocess.run`, must not write into
    whatever has its number there. So the variable names the pipe's inode too.

    Args:
        environment: Variables of the process.
    """
    fd, _, inode = environment.get(VARIABLE, "").partition(":")
    if not (fd.isdecimal() and inode.isdecimal()):
        return Heartbeat(None)
    try:
        is_ours = os.fstat(int(fd)).st_ino == int(inode)
    except OSError:
        is_ours = False
    return Heartbeat(int(fd) if is_ours else None)


heartbeat = connect()
