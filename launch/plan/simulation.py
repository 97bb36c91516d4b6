"""Simulation of a run that fails at random and saves in the background.

The simulation checks the formula in `distrib.save_policy.interval` without its assumptions: it
plays attempt after attempt, from a restart to the next failure, and adds up where the time went.
Only the time until an attempt fails is random; the schedule of saves follows from it. NumPy
therefore simulates all attempts at once, many thousand in a millisecond.

The schedule is that of `distrib.training.fit_session`: a save is due after `interval` seconds of
training since the last one, begins when none is in flight, blocks training for `save_cost` seconds,
and is committed `write_time` seconds after that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distrib.save_policy.interval import Costs

FAILURES = 50_000


@dataclass(frozen=True)
class TimeBreakdown:
    """Where the time of a run went, in seconds.

    Attributes:
        kept: Training up to the last commit before each failure.
        repeated: Training after that commit, which is lost and repeated.
        saves: Training blocked by saves.
        restarts: From each failure until training resumed.
    """

    kept: float
    repeated: float
    saves: float
    restarts: float

    @property
    def total(self) -> float:
        """The run's whole time."""
        return self.kept + self.repeated + self.saves + self.restarts

    @property
    def goodput(self) -> float:
        """The share of the time that was kept, from 0 to 1."""
        return self.kept / self.total


def simulate(
    interval: float, costs: Costs, mtbf: float, failures: int = FAILURES, seed: int = 0
) -> TimeBreakdown:
    """Simulate a run with many failures, which come at random with a constant rate.

    Args:
        interval: Seconds from the end of a save until the next is due; above 0.
        costs: What saving and failing cost.
        mtbf: Mean time between failures of the whole job, in seconds; above 0.
        failures: Number of failures; the error falls with its root. Defaults to `FAILURES`.
        seed: Gives all intervals the same failures, so that a curve is smooth. Defaults to `0`.

    Example:
    >>> time = simulate(600, Costs(save_cost=2, write_time=60, restart_time=300), mtbf=36000)
    >>> round(time.goodput, 2)
    0.98
    """
    uptimes = np.random.default_rng(seed).exponential(mtbf, failures)
    restarting = np.minimum(uptimes, costs.restart_time)
    training = uptimes - restarting
    # The first save is due after `interval`; later ones may wait for the one before.
    between = max(interval, costs.write_time)
    cycle = between + costs.save_cost
    since_due = np.maximum(training - interval, 0)
    begun, into_cycle = np.divmod(since_due, cycle)
    saving = begun * costs.save_cost + np.minimum(into_cycle, costs.save_cost)
    since_commit = training - interval - costs.save_cost - costs.write_time
    committed = np.maximum(since_commit // cycle + 1, 0)
    kept = np.where(committed > 0, interval + (committed - 1) * between, 0)
    return TimeBreakdown(
        kept=float(kept.sum()),
        repeated=float((training - saving - kept).sum()),
        saves=float(saving.sum()),
        restarts=float(restarting.sum()),
    )
