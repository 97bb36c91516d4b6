"""A job from its first attempt to its end: gather hosts, run all ranks, decide, and begin anew."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib.environment import (
    ATTEMPTS_VARIABLE,
    GRACE_VARIABLE,
    LAST_END_VARIABLE,
    STALLED_VARIABLE,
)
from distrib.errors import EXIT_PREEMPTED, DistribError, Preempted

from ..hosts.allocation import Crew, Fleet
from ..hosts.channel import Link
from ..hosts.placement import Slot
from ..process.launcher import Console
from . import rendezvous
from .liveness import Limits, Watch
from .output import Display
from .restarts import Restarts
from .supervisor import Result, Supervisor


@dataclass(frozen=True)
class Plan:
    """How a job is run.

    Attributes:
        backend: `"horovod"`, `"multiworker"`, or `"local"`, which is one process.
        first_port: For multiworker: each host's first port; `None` for any that is free.
        limits: How long it may be silent.
        attempts: How many in a row may gain no step; 0 for no restarts.
        grace: Seconds that a rank has for saving after a request to stop.
        output_dir: Where each rank's output is kept; `None` for nowhere.
    """

    backend: str
    first_port: int | None
    limits: Limits
    attempts: int
    grace: float
    output_dir: Path | None


class Job:
    """One job.

    Args:
        fleet: Its hosts.
        console: The launcher's.
        plan: How it is run.
    """

    def __init__(self, fleet: Fleet, console: Console, plan: Plan) -> None:
        self._fleet = fleet
        self._console = console
        self._plan = plan
        self._restarts = Restarts(plan.attempts)

    def run(self) -> int:
        """Run it to its end, and return the exit code."""
        code = EXIT_PREEMPTED
        try:
            code = self._run()
        except DistribError as error:
            code = error.exit_code
            raise
        except Preempted:
            self._console.say(
                f"asked to stop while no rank was running. (exit code {EXIT_PREEMPTED})"
            )
        finally:
            self._fleet.dismiss(code)
        return code

    def _run(self) -> int:
        while True:
            crew = self._fleet.gather()
            display = Display(
                self._plan.output_dir,
                len(crew.slots),
                quiet=rendezvous.LOG_LEVEL not in os.environ,
            )
            watch = Watch(self._plan.limits)
            result = self._attempt(crew, display, watch)
            error = display.last_error(result.end.rank) if result.end else ""
            verdict = self._restarts.judge(
                result, watch.progress, error, self._console.signals.asked_to_stop
            )
            if verdict.reason:
                display.say(verdict.reason)
            display.close()
            if verdict.exit_code is not None:
                return verdict.exit_code
            self._console.pause(verdict.pause)

    def _attempt(self, crew: Crew, display: Display, watch: Watch) -> Result:
        supervisor = Supervisor(
            display,
            self._plan.grace,
            self._console.signals,
            watch,
            self._fleet.leaving,
            self._console.alive.tick,
        )
        with self._environments(crew) as environments:
            return supervisor.run(self._ranks(crew.slots, environments))

    def _ranks(
        self, slots: Sequence[Slot], environments: Sequence[rendezvous.Environment]
    ) -> Iterator[tuple[Slot, Link, Mapping[str, Any]]]:
        """Yield each rank's place, its keeper, and what that is told."""
        links = self._fleet.connect(slots)
        for slot, link, environment in zip(slots, links, environments, strict=True):
            spec = self._fleet.spec(slot)
            yield slot, link, {**spec, "environment": {**spec["environment"], **environment}}

    @contextmanager
    def _environments(self, crew: Crew) -> Iterator[list[rendezvous.Environment]]:
        """Yield what makes processes the ranks of one attempt, as long as it lasts."""
        common = {
            # What the ledger in the checkpoint's store and the ranks' messages need to know.
            ATTEMPTS_VARIABLE: str(self._plan.attempts),
            STALLED_VARIABLE: str(self._restarts.stalled),
            LAST_END_VARIABLE: self._restarts.last_error,
            GRACE_VARIABLE: f"{self._plan.grace:g}",
        }
        with ExitStack() as stack:
            own: list[rendezvous.Environment] = [{}]
            if self._plan.backend == "horovod":
                port = stack.enter_context(rendezvous.server(crew.slots, crew.views))
                own = [
                    rendezvous.horovod_environment(slot, crew.views[slot.host], port)
                    for slot in crew.slots
                ]
            elif self._plan.backend == "multiworker":
                first_port = self._plan.first_port
                addresses = rendezvous.worker_addresses(crew.slots, crew.views, first_port)
                own = [rendezvous.multiworker_environment(slot, addresses) for slot in crew.slots]
            yield [
                {**rendezvous.common_environment(slot), **common, **its_own}
                for slot, its_own in zip(crew.slots, own, strict=True)
            ]
