"""The best interval between saves, from the cost of a save and the rate of failures.

A run that saves every `interval` seconds pays for each save, and after each failure it repeats half
an interval on average. One cost falls with the interval and the other grows, so there is an
optimum. Young (1974) derived it to first order, and Daly (2006) from the expected time of the whole
run for failures at a constant random rate; both formulas are here, unchanged. They need the mean
time between failures (MTBF), which is unknown when a run starts. So it is estimated from the run's
own failures, and from a prior that weighs as much as one failure.

A wrong estimate costs little. The interval grows with the square root of the MTBF, and saving twice
or half as often as is best raises the loss to saves and repeated work by only a quarter.

- J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974.
- N. H. Vaidya, Impact of checkpoint latency on overhead ratio of a checkpointing scheme, IEEE
  Transactions on Computers 46(8), 1997.
- J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future
  Generation Computer Systems 22(3), 2006.
- J. Mohan et al., CheckFreq: frequent, fine-grained DNN checkpointing, USENIX FAST, 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from distrib.errors import ConfigurationError
from distrib.units import format_duration

MAX_OVERHEAD = 0.035
PRIOR_MTBF = 24 * 3600.0


@dataclass(frozen=True)
class Costs:
    """The costs of saves and failures of a run, in seconds; all at least 0.

    Attributes:
        save_cost: Training time that a save costs.
        write_time: From the moment training continues until the save is committed. A failure before
            the commit loses the save. One save is in flight at a time, so the next one waits.
            Defaults to 0.
        restart_time: From a failure until training continues from the last checkpoint. Defaults to
            0.

    Raises:
        ConfigurationError: If a value is negative or not finite.
    """

    save_cost: float
    write_time: float = 0.0
    restart_time: float = 0.0

    def __post_init__(self) -> None:
        _check_not_negative(self)


@dataclass(frozen=True)
class Observed:
    """Measurements of a run so far.

    Attributes:
        save_cost: See `Costs`.
        write_time: See `Costs`.
        uptime: Total seconds of all attempts of the run.
        failures: Number of attempts that failed.

    Raises:
        ConfigurationError: If a value is negative or not finite.
    """

    save_cost: float
    write_time: float
    uptime: float
    failures: int

    def __post_init__(self) -> None:
        _check_not_negative(self)

    @property
    def mtbf(self) -> float:
        """The expected mean time between failures, in seconds.

        `uptime / failures` would be infinite until the first failure, and far off after it. So the
        failure rate has a Gamma prior with shape 1 and a mean of one per day, and this is the
        inverse of its posterior mean, `(uptime + 24 h) / (failures + 1)`: as if the run had started
        a day earlier, with one failure on that day. A day lies between the hours of preemptible
        machines or ten thousand GPUs, and the weeks of a few dedicated machines. A prior that is
        wrong by a factor of ten makes the interval wrong by 3.2 until there are more measurements,
        which costs three quarters more than the least loss.
        """
        return (self.uptime + PRIOR_MTBF) / (self.failures + 1)


@dataclass(frozen=True)
class Interval:
    """The interval between two saves.

    Attributes:
        seconds: From the end of one save until the next is due.
        reason: Why it was chosen, in one line.
    """

    seconds: float
    reason: str


def young(save_cost: float, mtbf: float) -> float:
    """Return Young's first-order optimum, `sqrt(2 * save_cost * mtbf)`, all in seconds.

    Example:
    >>> young(save_cost=0.5, mtbf=3600)
    60.0
    """
    return math.sqrt(2 * save_cost * mtbf)


def daly(save_cost: float, mtbf: float) -> float:
    """Return Daly's higher-order optimum, all in seconds.

    With the cost d and the MTBF M it is `sqrt(2dM) (1 + sqrt(d/2M)/3 + (d/2M)/9) - d`, or M if d is
    2M or more. Daly and distrib measure it from the end of one save to the start of the next.

    Example:
    >>> daly(save_cost=5 * 60, mtbf=24 * 3600) // 60  # the first example of Daly's paper
    116.0
    """
    if save_cost >= 2 * mtbf:
        return mtbf
    ratio = save_cost / (2 * mtbf)
    return young(save_cost, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_cost


def goodput(interval: float, costs: Costs, mtbf: float) -> float:
    """Return the share of a long run's time that is training which is not lost, from 0 to 1.

    The rest, `1 - goodput`, goes to saves, to repeated work and to restarts. Daly's complete model
    gives the expected time T of a run that would take Ts without saves or failures:
    `T = M exp(R/M) (exp((interval + d)/M) - 1) Ts/interval`. Goodput is Ts/T. The time between
    failures is exponential with the mean M, during restarts (R) too.

    Writing in the background changes one thing. After a failure the first save counts only when it
    is committed, `write_time` later; all others follow one interval apart. A longer restart would
    have the same effect, so the model holds exactly with `R = restart_time + write_time`, and the
    best interval does not depend on it (Vaidya 1997 has the same for checkpoint latency). An
    interval below `write_time` acts like `write_time`, because saves wait.

    Args:
        interval: Seconds from the end of a save until the next is due; above 0.
        costs: Of saves and failures.
        mtbf: Mean time between failures of the whole job, in seconds; above 0.

    Example:
    >>> round(goodput(600, Costs(save_cost=2, write_time=60, restart_time=300), mtbf=36000), 4)
    0.9785
    """
    interval = max(interval, costs.write_time)
    cycle = interval + costs.save_cost
    # Daly's formula, inverted so that nothing overflows for a run that would never finish.
    survival = math.exp(-(costs.restart_time + costs.write_time + cycle) / mtbf)
    return interval / mtbf * survival / -math.expm1(-cycle / mtbf)


def best_interval(costs: Costs, mtbf: float, max_overhead: float = MAX_OVERHEAD) -> Interval:
    """Return the best interval of a job whose MTBF is known.

    This is Daly's optimum, unless it is too short: saves must not cost more than `max_overhead` of
    the training time between them, nor be due faster than they can be written.

    Args:
        costs: Of a save.
        mtbf: Mean time between failures of the whole job, in seconds; above 0.
        max_overhead: Between 0 and 1. Defaults to 0.035, the bound of CheckFreq.

    Returns:
        The interval, and which of the three limits decided.

    Raises:
        ConfigurationError: If `mtbf` or `max_overhead` is out of its range.

    Example:
    >>> best_interval(Costs(save_cost=0.5), mtbf=3600)
    Interval(seconds=59.6..., reason='the least loss to be expected')
    """
    if not 0 < mtbf < math.inf:
        raise ConfigurationError(f"`mtbf={mtbf!r}` must be a number of seconds above 0.")
    if not 0 < max_overhead < 1:
        raise ConfigurationError(
            f"`max_overhead={max_overhead!r}` must be a fraction between 0 and 1, such as 0.035."
        )
    optimum = daly(costs.save_cost, mtbf)
    affordable = costs.save_cost / max_overhead
    seconds = max(optimum, affordable, costs.write_time)
    if seconds == optimum:
        return Interval(seconds, "the least loss to be expected")
    if seconds == affordable:
        bound = f"saves would take more than {100 * max_overhead:.3g} % of the time"
    else:
        bound = f"a save is committed only after {format_duration(costs.write_time)}"
    return Interval(seconds, f"{format_duration(optimum)} would be best, but {bound}")


def choose_interval(observed: Observed, max_overhead: float = MAX_OVERHEAD) -> Interval:
    """Choose the interval of a run from its measurements.

    Args:
        observed: Measurements so far.
        max_overhead: See `best_interval`. Defaults to 0.035.

    Returns:
        The interval, and a line to log.

    Raises:
        ConfigurationError: If `max_overhead` is out of its range.

    Example:
    >>> choose_interval(Observed(save_cost=0.5, write_time=20, uptime=7200, failures=1)).reason
    'every 216 s: a save costs 0.5 s, 1 failure in 2 h, the next expected after 13 h; ...'
    """
    costs = Costs(observed.save_cost, observed.write_time)
    interval = best_interval(costs, observed.mtbf, max_overhead)
    failures = f"{observed.failures or 'no'} failure{'' if observed.failures == 1 else 's'}"
    return Interval(
        interval.seconds,
        f"every {format_duration(interval.seconds)}: a save costs "
        f"{format_duration(observed.save_cost)}, {failures} in {format_duration(observed.uptime)}, "
        f"the next expected after {format_duration(observed.mtbf)}; {interval.reason}",
    )


def _check_not_negative(values: Costs | Observed) -> None:
    for field in fields(values):
        value = getattr(values, field.name)
        if not 0 <= value < math.inf:
            raise ConfigurationError(
                f"`{field.name}={value!r}` must be a finite number of at least 0."
            )
