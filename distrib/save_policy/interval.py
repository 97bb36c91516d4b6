"""How often to save: often enough that a failure costs little, seldom enough that saving does.

A run that saves every `interval` seconds pays for each save, and for each failure it repeats half
an interval on average. One cost falls with the interval and the other grows, so there is a best
one. Young (1974) gave it to first order, and Daly (2006) with the expected time of the whole run
for failures that come at random with a constant rate; both are here, unchanged. What they need, the
mean time between failures (MTBF), nobody knows when a run starts, so it is estimated from what the
run has been through, and from an assumption that weighs as much as one failure.

Being wrong is cheap. The interval grows with the root of the MTBF, and a run that saves twice as
often as it should, or half as often, loses a quarter more of the little that it has to lose.

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
    """What saving and failing cost a run, in seconds; all at least 0.

    Attributes:
        save_cost: That a save keeps the training from going on.
        write_time: From the moment a save lets the training go on to its commit. A failure before
            the commit loses that save. One save is in flight at a time, so the next one waits.
        restart_time: From a failure until the training goes on from the last checkpoint.

    Raises:
        ConfigurationError: If a value is negative or no finite number.
    """

    save_cost: float
    write_time: float = 0.0
    restart_time: float = 0.0

    def __post_init__(self) -> None:
        _check_not_negative(self)


@dataclass(frozen=True)
class Observed:
    """What a run knows of itself.

    Attributes:
        save_cost: See `Costs`.
        write_time: See `Costs`.
        uptime: Seconds that all attempts of the run have lasted so far, together.
        failures: How many attempts ended before the run did.

    Raises:
        ConfigurationError: If a value is negative or no finite number.
    """

    save_cost: float
    write_time: float
    uptime: float
    failures: int

    def __post_init__(self) -> None:
        _check_not_negative(self)

    @property
    def mtbf(self) -> float:
        """The mean time between failures that is to be expected, in seconds.

        `uptime / failures` would be infinite until the first failure, and far off after it. So the
        rate of failures has a Gamma prior of shape 1 and mean one a day, and this is the inverse of
        its posterior mean, `(uptime + 24 h) / (failures + 1)`: as if the run had begun a day
        earlier, with one failure on that day. A day lies between a pool of machines that may be
        taken away, or ten thousand GPUs, where hours pass between failures, and a few machines of
        one's own, where weeks do. An assumption wrong by a factor of ten makes the interval wrong
        by 3.2 until the run knows better, which costs three quarters more than the least loss.
        """
        return (self.uptime + PRIOR_MTBF) / (self.failures + 1)


@dataclass(frozen=True)
class Choice:
    """An interval.

    Attributes:
        seconds: From the end of one save until the next is due.
        reason: Why, in one line.
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

    With d for the cost and M for the MTBF it is `sqrt(2dM) (1 + sqrt(d/2M)/3 + (d/2M)/9) - d`, or M
    if d is 2M and more. Daly counts it, and so does distrib, from the end of one save to the
    beginning of the next.

    Example:
    >>> daly(save_cost=5 * 60, mtbf=24 * 3600) // 60  # the first example of Daly's paper
    116.0
    """
    if save_cost >= 2 * mtbf:
        return mtbf
    ratio = save_cost / (2 * mtbf)
    return young(save_cost, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_cost


def goodput(interval: float, costs: Costs, mtbf: float) -> float:
    """Return the share of a long run's time that is training which lasts, from 0 to 1.

    The rest, `1 - goodput`, goes to saves, to work that is done again, and to restarts. Daly's
    complete model gives the expected time T of a run that would take Ts without saves or failures:
    `T = M exp(R/M) (exp((interval + d)/M) - 1) Ts/interval`. Goodput is Ts/T. Failures are
    exponential with the mean M, during restarts (R) too.

    Saves that are written in the background change one thing. After a failure the first save counts
    only when it is committed, `write_time` later; all others follow at the distance of an interval.
    That is what a longer restart would do, so the model holds with `R = restart_time + write_time`,
    exactly, and the best interval does not depend on it (Vaidya 1997 has the same for checkpoint
    latency). An interval shorter than `write_time` acts like `write_time`, because saves wait.

    Args:
        interval: Seconds from the end of a save until the next is due; above 0.
        costs: What saving and failing cost.
        mtbf: Mean time between failures of the whole job, in seconds; above 0.

    Example:
    >>> round(goodput(600, Costs(save_cost=2, write_time=60, restart_time=300), mtbf=36000), 4)
    0.9785
    """
    interval = max(interval, costs.write_time)
    cycle = interval + costs.save_cost
    # Daly's formula, turned round so that nothing overflows where no run would ever come to an end.
    survival = math.exp(-(costs.restart_time + costs.write_time + cycle) / mtbf)
    return interval / mtbf * survival / -math.expm1(-cycle / mtbf)


def best(costs: Costs, mtbf: float, max_overhead: float = MAX_OVERHEAD) -> Choice:
    """Choose the interval of a job whose failures are known.

    It is Daly's optimum, unless that is too short: saves shall not cost more than `max_overhead` of
    the time trained between them, nor come due faster than they can be written.

    Args:
        costs: What a save costs.
        mtbf: Mean time between failures of the whole job, in seconds; above 0.
        max_overhead: Between 0 and 1. By default 3.5 %, the bound that CheckFreq keeps to.

    Returns:
        The interval, and which of the three decided.

    Raises:
        ConfigurationError: If `mtbf` or `max_overhead` is out of its range.

    Example:
    >>> best(Costs(save_cost=0.5), mtbf=3600)
    Choice(seconds=59.6..., reason='the least loss to be expected')
    """
    if not 0 < mtbf < math.inf:
        raise ConfigurationError(f"`mtbf={mtbf!r}` must be a number of seconds above 0.")
    if not 0 < max_overhead < 1:
        raise ConfigurationError(
            f"`max_overhead={max_overhead!r}` must be a share between 0 and 1, such as 0.035."
        )
    optimum = daly(costs.save_cost, mtbf)
    affordable = costs.save_cost / max_overhead
    seconds = max(optimum, affordable, costs.write_time)
    if seconds == optimum:
        return Choice(seconds, "the least loss to be expected")
    if seconds == affordable:
        bound = f"saves would take more than {100 * max_overhead:.3g} % of the time"
    else:
        bound = f"a save is committed only after {format_duration(costs.write_time)}"
    return Choice(seconds, f"{format_duration(optimum)} would be best, but {bound}")


def choose(observed: Observed, max_overhead: float = MAX_OVERHEAD) -> Choice:
    """Choose the interval of a run from what it knows of itself.

    Args:
        observed: Measured so far.
        max_overhead: See `best`.

    Returns:
        The interval, and a line to log.

    Raises:
        ConfigurationError: If `max_overhead` is out of its range.

    Example:
    >>> choose(Observed(save_cost=0.5, write_time=20, uptime=7200, failures=1)).reason
    'every 216 s: a save costs 0.5 s, 1 failure in 2 h, the next expected after 13 h; ...'
    """
    costs = Costs(observed.save_cost, observed.write_time)
    choice = best(costs, observed.mtbf, max_overhead)
    failures = f"{observed.failures or 'no'} failure{'' if observed.failures == 1 else 's'}"
    return Choice(
        choice.seconds,
        f"every {format_duration(choice.seconds)}: a save costs "
        f"{format_duration(observed.save_cost)}, {failures} in {format_duration(observed.uptime)}, "
        f"the next expected after {format_duration(observed.mtbf)}; {choice.reason}",
    )


def _check_not_negative(values: Costs | Observed) -> None:
    for field in fields(values):
        value = getattr(values, field.name)
        if not 0 <= value < math.inf:
            raise ConfigurationError(
                f"`{field.name}={value!r}` must be a number that is 0 or more."
            )
