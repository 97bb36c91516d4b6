"""Where the runs of a job are saved, from attempt to attempt.

A restarted attempt should find what the attempt before has saved. If the run's directory has the
time in its name, or is on a disk of one host, it finds nothing: each attempt begins the whole
training anew. The ranks of an attempt cannot know that, so the chief's heartbeats are compared.

A script may have several `fit`s, each with a directory of its own, such as the folds of a
cross-validation. Only the last one of a failed attempt was unfinished, so only that one is missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distrib.errors import EXIT_CONFIGURATION
from distrib.storage.credentials import store_of


@dataclass(frozen=True)
class Run:
    """One `fit`, as the chief reports it.

    Attributes:
        directory: Where its checkpoints are.
        host: The chief's.
        attempt: Number of the attempt, from 1.
        committed: Step of its last checkpoint.
        finished: Whether its training has finished.
    """

    directory: str
    host: str
    attempt: int
    committed: int
    finished: bool

    def __str__(self) -> str:
        return self.directory if store_of(self.directory) else f"{self.directory} on {self.host}"


class RunDirectories:
    """The directories of one job.

    Attributes:
        stores: Object stores that the job could write to, as `s3://bucket`.
        refusal: Why the job ends: it would repeat its whole training. Empty if it does not.
    """

    def __init__(self) -> None:
        self.stores: set[str] = set()
        self.refusal = ""
        self._attempt = 0
        self._run: Run | None = None  # The last one of this attempt.
        self._unfinished: Run | None = None  # The last one of an earlier attempt.
        self._finished: set[str] = set()

    def begin_attempt(self) -> None:
        """Take note that the next attempt begins."""
        if self._run is not None:
            has_progress = self._run.committed > 0 and not self._run.finished
            self._unfinished = self._run if has_progress else None
        self._run = None
        self._attempt += 1

    def record(self, host: str, facts: Mapping[str, Any]) -> str:
        """Record a heartbeat of the chief; return a message for the user, which may be empty.

        Args:
            host: The chief's.
            facts: Of the heartbeat.
        """
        if "run" not in facts:  # No `fit` has begun.
            return ""
        before = self._run
        run = Run(facts["run"], host, self._attempt, facts["committed"], facts["finished"])
        self._run = run
        if store := store_of(run.directory):
            self.stores.add(store)
        if run.finished:
            self._finished.add(run.directory)
        same = before is not None and before.directory == run.directory
        return "" if same else self._compare(run, facts["found"])

    def _compare(self, run: Run, found: bool) -> str:
        """Compare a run that has just begun with the one that an earlier attempt left."""
        missed = self._unfinished
        if missed is None:
            return ""
        if found or run.directory in self._finished:  # Other `fit`s may come before it.
            if run.directory == missed.directory:
                self._unfinished = None
            return ""
        self._unfinished = None
        found_nothing = (
            f"attempt {run.attempt} has found nothing in {run}, but attempt {missed.attempt} has "
            f"saved step {missed.committed} in {missed}"
        )
        remedy = _remedy(run, missed)
        if self._finished:
            return f"{found_nothing}, so this training begins anew. {remedy}"
        self.refusal = (
            f"{found_nothing}. The job ends, because each attempt would repeat the whole training. "
            f"{remedy} (exit code {EXIT_CONFIGURATION})"
        )
        return ""


def _remedy(run: Run, missed: Run) -> str:
    if run.directory != missed.directory:
        return (
            "Give BackupAndRestore the same directory in each attempt, so without the time or a "
            f"random part in its name; with {missed.directory} this training continues."
        )
    if run.host != missed.host:
        return "Give BackupAndRestore a directory that all hosts share."
    return "Keep the directory until the training has finished."
