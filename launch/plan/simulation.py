"""A training run simulated: what becomes of its time when saves go on in the background.

The formula in `distrib.save_policy.interval` is exact for what it assumes. This does not assume it:
it plays attempt after attempt, from a restart to the next failure, and adds up where the time went.
Between two failures nothing is random, so an attempt is one random number, the time until it fails,
and the schedule of saves up to then. Hence many thousand failures are simulated in a millisecond,
for as many attempts at once.

The schedule is that of `distrib.training.resume`: a save is due when `interval` seconds have been
trained since the last one, begins when none is in flight, keeps the training waiting for
`save_cost`, and is committed `write_time` after that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distrib.save_policy.interval import Costs

FAILURES = 50_000


@dataclass(frozen=True)
class Spent:
    """Where the time of a run went, in seconds.

    Attributes:
        kept: Training up to the last save that was committed before each failure.
        repeated: Training after it, which has to be done again.
        saves: Waiting for saves.
        restarts: From each failure until the training went on.
    """

    kept: float
    repeated: float
    saves: float
    restarts: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.kept + self.repeated + self.saves + self.restarts

    @property
    def goodput(self) -> float:
        """The share that was kept."""
        return self.kept / self.total


def simulate(
    interval: float, costs: Costs, mtbf: float, failures: int = FAILURES, seed: int = 0
) -> Spent:
    """Play a run through many failures, which come at random with a constant rate.

    Args:
        interval: Seconds from the end of a save until the next is due; above 0.
        costs: What saving and failing cost.
        mtbf: Mean time between failures of the whole job, in seconds; above 0.
        failures: How many of them. The result's error falls with the root of this number.
        seed: With the same one, the same failures hit every interval, so that a curve is smooth.

    Example:
    >>> spent = simulate(600, Costs(save_cost=2, write_time=60, restart_time=300), mtbf=36000)
    >>> round(spent.goodput, 2)
    0.98
    """
    lasted = np.random.default_rng(seed).exponential(mtbf, failures)
    restarting = np.minimum(lasted, costs.restart_time)
    training = lasted - restarting
    # The first save is due after `interval`. Any later one may have to wait for the one before.
    between = max(interval, costs.write_time)
    cycle = between + costs.save_cost
    since_due = np.maximum(training - interval, 0)
    begun, into_cycle = np.divmod(since_due, cycle)
    saving = begun * costs.save_cost + np.minimum(into_cycle, costs.save_cost)
    since_commit = training - interval - costs.save_cost - costs.write_time
    committed = np.maximum(since_commit // cycle + 1, 0)
    kept = np.where(committed > 0, interval + (committed - 1) * between, 0)
    return Spent(
        kept=float(kept.sum()),
        repeated=float((training - saving - kept).sum()),
        saves=float(saving.sum()),
        restarts=float(restarting.sum()),
    )
