"""A job from its first attempt to its end: allocate hosts, run all ranks, decide, restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib import startup_noise
from distrib.environment import (
    ATTEMPTS_VARIABLE,
    GRACE_VARIABLE,
    LAST_END_VARIABLE,
    STALLED_VARIABLE,
)
from distrib.errors import EXIT_CONFIGURATION, EXIT_PREEMPTED, DistribError, Preempted
from distrib.storage.credentials import VARIABLE as STORES_VARIABLE

from ..hosts.channel import Channel
from ..hosts.host_pool import Allocation, HostPool
from ..hosts.placement import RankPlacement
from ..process.launcher_context import LauncherContext
from . import rendezvous
from .error_text import ErrorText, find_error, last_line
from .failure import RankExit
from .hang_detector import HangDetector, HangTimeouts, Progress
from .output import Display
from .rank_exits import EXIT_EXCEPTION
from .restarts import Decision, Failure, Restarts
from .run_directories import RunDirectories
from .spares import Spares
from .supervisor import AttemptResult, Supervisor


@dataclass(frozen=True)
class JobOptions:
    """How to run a job.

    Attributes:
        backend: `"horovod"`, `"multiworker"`, or `"local"`, which is one process.
        first_port: For multiworker: each host's first port; `None` for any that is free.
        timeouts: How long a job may make no progress.
        attempts: How many attempts in a row may make no progress; 0 for no restarts.
        grace: Seconds that a rank has for saving after a request to stop.
        output_dir: Where each rank's output is kept; `None` for nowhere.
        spares: Whether to keep spares for the next attempt.
    """

    backend: str
    first_port: int | None
    timeouts: HangTimeouts
    attempts: int
    grace: float
    output_dir: Path | None
    spares: bool


class Job:
    """One job.

    Args:
        pool: Its hosts.
        context: The launcher's.
        options: How to run it.
    """

    def __init__(self, pool: HostPool, context: LauncherContext, options: JobOptions) -> None:
        self._pool = pool
        self._context = context
        self._options = options
        self._restarts = Restarts(options.attempts)
        self._runs = RunDirectories()
        self._spares = Spares(pool.connect_spare, options.backend, options.spares)
        self._progress: Mapping[str, Progress] = {}  # Of each `fit`, by directory.

    def run(self) -> int:
        """Run the job to its end, and return the exit code."""
        code = EXIT_EXCEPTION
        try:
            code = self._run()
        except DistribError as error:
            code = error.exit_code
            raise
        except Preempted:
            code = EXIT_PREEMPTED
            self._context.log(
                f"asked to stop while no rank was running. (exit code {EXIT_PREEMPTED})"
            )
        finally:
            self._spares.close()
            self._pool.shut_down(code)
        return code

    def _run(self) -> int:
        while True:
            allocation = self._pool.allocate()
            placements = allocation.placements
            noise = startup_noise.of_ranks([placement.host.is_local for placement in placements])
            display = Display(self._options.output_dir, len(placements), noise)
            detector = HangDetector(self._options.timeouts, self._progress)
            result = self._attempt(allocation, display, detector)
            self._progress = detector.runs
            failure = _describe(result.cause, display, detector)
            decision = self._restarts.decide(
                result, detector.progress, failure, self._context.signals.stop_requested
            )
            if self._runs.refusal and result.cause is not None:
                decision = Decision(EXIT_CONFIGURATION, 0.0, self._runs.refusal)
            if decision.reason:
                display.log(decision.reason)
            display.close()
            if decision.exit_code is not None:
                return decision.exit_code
            self._context.pause(decision.delay)

    def _attempt(
        self, allocation: Allocation, display: Display, detector: HangDetector
    ) -> AttemptResult:
        self._runs.begin_attempt()
        supervisor = Supervisor(
            display,
            self._options.grace,
            self._context.signals,
            detector,
            self._pool.preempted_hosts,
            self._context.liveness_file.touch,
            self._runs,
            self._spares.record,
        )
        with self._environments(allocation) as environments:
            return supervisor.run(self._ranks(allocation.placements, environments))

    def _ranks(
        self, placements: Sequence[RankPlacement], environments: Iterable[rendezvous.Environment]
    ) -> Iterator[tuple[RankPlacement, Channel, Mapping[str, Any]]]:
        """Yield each rank's placement, the channel to its agent, and the spec for that agent."""
        specs = {placement: self._spec(placement) for placement in placements}
        channels = self._pool.connect(placements, self._spares.take(specs))
        for placement, channel, environment in zip(placements, channels, environments, strict=True):
            spec = specs[placement]
            environment = {**spec["environment"], **environment}
            yield placement, channel, {**spec, "environment": environment}

    def _spec(self, placement: RankPlacement) -> Mapping[str, Any]:
        """Return what a rank has in common with the spares that can become it."""
        spec = self._pool.spec(placement)
        own = rendezvous.interpreter_environment(placement)
        return {**spec, "environment": {**spec["environment"], **own}}

    @contextmanager
    def _environments(self, allocation: Allocation) -> Iterator[Iterator[rendezvous.Environment]]:
        """Yield the environments of the ranks, valid while the rendezvous server runs.

        Each is made when its rank starts: it may name all ranks, so all at once are much memory.
        """
        placements, views = allocation.placements, allocation.views
        common = {
            # For the ledger beside the checkpoints, and for the ranks' messages.
            ATTEMPTS_VARIABLE: str(self._options.attempts),
            STALLED_VARIABLE: str(self._restarts.stalled),
            LAST_END_VARIABLE: self._restarts.last_error,
            STORES_VARIABLE: " ".join(sorted(self._runs.stores)),
            GRACE_VARIABLE: f"{self._options.grace:g}",
        }
        with ExitStack() as stack:
            of_backend: Iterable[rendezvous.Environment] = [{}]
            if self._options.backend == "horovod":
                port = stack.enter_context(rendezvous.server(placements, views))
                of_backend = (
                    rendezvous.horovod_environment(placement, views[placement.host], port)
                    for placement in placements
                )
            elif self._options.backend == "multiworker":
                first_port = self._options.first_port
                addresses = rendezvous.worker_addresses(placements, views, first_port)
                of_backend = (
                    rendezvous.multiworker_environment(placement, addresses)
                    for placement in placements
                )
            yield (
                {**rendezvous.common_environment(placement), **common, **own}
                for placement, own in zip(placements, of_backend, strict=True)
            )


def _describe(cause: RankExit | None, display: Display, detector: HangDetector) -> Failure:
    """Return what the rank that caused a failure has reported."""
    if cause is None:
        return Failure()
    text = display.errors_of(cause.rank)
    error = find_error(text)
    if not error.line and cause.is_own:
        error = ErrorText(last_line(text))
    return Failure(error, detector.step_of(cause.rank))
