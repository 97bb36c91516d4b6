import doctest
import math

import pytest

from distrib.errors import ConfigurationError
from distrib.save_policy import interval
from distrib.save_policy.interval import (
    Costs,
    Observed,
    best_interval,
    choose_interval,
    daly,
    goodput,
    young,
)
from distrib.units import format_duration

HOUR = 3600.0


def test_examples() -> None:
    failed, tried = doctest.testmod(interval, optionflags=doctest.ELLIPSIS)
    assert tried >= 5
    assert failed == 0


@pytest.mark.parametrize(("mtbf", "optimum"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_the_examples_of_dalys_paper(mtbf: float, optimum: float) -> None:
    # Figures 3 to 5, in minutes, for saves of 5 minutes.
    assert daly(5, mtbf) == pytest.approx(optimum, abs=0.5 if optimum > 10 else 0.05)


def best_by_search(save_cost: float, mtbf: float) -> float:
    """Find the minimum of the expected time, which has only one, by halving the range."""

    def expected(tau: float) -> float:
        return math.expm1((tau + save_cost) / mtbf) / tau

    low, high = 1e-6 * mtbf, 10 * mtbf
    while high - low > 1e-9 * high:
        third = (high - low) / 3
        if expected(low + third) < expected(high - third):
            high -= third
        else:
            low += third
    return low


@pytest.mark.parametrize(
    ("ratio", "tolerance"), [(1e-6, 1e-4), (1e-4, 1e-4), (0.01, 1e-4), (0.1, 1e-3), (0.5, 0.01)]
)
def test_daly_agrees_with_a_search(ratio: float, tolerance: float) -> None:
    found = best_by_search(ratio * HOUR, HOUR)
    assert daly(ratio * HOUR, HOUR) == pytest.approx(found, rel=tolerance)
    assert abs(young(ratio * HOUR, HOUR) - found) > abs(daly(ratio * HOUR, HOUR) - found)


@pytest.mark.parametrize("ratio", [1e-4, 0.01, 0.5, 1, 1.9, 2, 5])
def test_dalys_interval_has_the_best_goodput(ratio: float) -> None:
    costs = Costs(save_cost=ratio * HOUR, restart_time=60)
    found = goodput(best_by_search(costs.save_cost, HOUR), costs, HOUR)
    chosen = goodput(daly(costs.save_cost, HOUR), costs, HOUR)
    assert found * 0.99 < chosen <= found * (1 + 1e-12)


def test_daly_is_the_mtbf_if_saves_take_longer() -> None:
    assert daly(2 * HOUR, HOUR) == daly(9 * HOUR, HOUR) == HOUR


def test_goodput_is_dalys_complete_model() -> None:
    tau, delta, restart, mtbf, work = 900.0, 30.0, 400.0, 5 * HOUR, 1e6
    expected = mtbf * math.exp(restart / mtbf) * (math.exp((tau + delta) / mtbf) - 1) * work / tau
    costs = Costs(delta, restart_time=restart)
    assert goodput(tau, costs, mtbf) == pytest.approx(work / expected, rel=1e-12)


def test_a_write_in_the_background_acts_like_a_longer_restart() -> None:
    behind = goodput(600, Costs(2, write_time=100, restart_time=50), HOUR)
    assert behind == pytest.approx(goodput(600, Costs(2, restart_time=150), HOUR), rel=1e-12)


def test_an_interval_shorter_than_a_write_acts_like_the_write() -> None:
    costs = Costs(2, write_time=100)
    assert goodput(1, costs, HOUR) == goodput(100, costs, HOUR) > goodput(50, Costs(2), 60)


def test_without_failures_only_saves_cost() -> None:
    assert goodput(99, Costs(1), 1e12) == pytest.approx(0.99, abs=1e-9)


def test_goodput_is_zero_if_no_run_finishes() -> None:
    assert goodput(10, Costs(1, restart_time=300), mtbf=0.01) == 0


def test_goodput_falls_with_every_cost_and_grows_with_the_mtbf() -> None:
    base = goodput(600, Costs(2, 100, 300), HOUR)
    worse = [Costs(3, 100, 300), Costs(2, 110, 300), Costs(2, 100, 310)]
    assert all(goodput(600, costs, HOUR) < base for costs in worse)
    assert goodput(600, Costs(2, 100, 300), 2 * HOUR) > base


@pytest.mark.parametrize(("factor", "more"), [(2, 1.25), (0.5, 1.25), (10**0.5, 1.74)])
def test_a_wrong_interval_costs_little(factor: float, more: float) -> None:
    costs, mtbf = Costs(0.1), 100 * HOUR
    optimum = daly(0.1, mtbf)
    lost = 1 - goodput(optimum, costs, mtbf)
    assert (1 - goodput(factor * optimum, costs, mtbf)) / lost == pytest.approx(more, rel=0.01)


def test_the_optimum_without_a_bound() -> None:
    interval = best_interval(Costs(1, write_time=10), 10 * HOUR)
    assert interval.seconds == daly(1, 10 * HOUR)
    assert interval.reason == "the least loss to be expected"


def test_saves_cost_at_most_max_overhead() -> None:
    interval = best_interval(Costs(save_cost=35, write_time=10), HOUR)
    assert interval.seconds == pytest.approx(1000)
    assert "would be best, but saves would take more than 3.5 %" in interval.reason
    assert best_interval(Costs(save_cost=35), HOUR, max_overhead=0.07).seconds == pytest.approx(500)


def test_the_interval_is_at_least_a_write() -> None:
    interval = best_interval(Costs(save_cost=0.1, write_time=400), HOUR)
    assert interval.seconds == 400
    assert "26.8 s would be best, but a save is committed only after 400 s" in interval.reason


def test_the_prior_is_one_failure_a_day() -> None:
    assert Observed(1, 0, uptime=0, failures=0).mtbf == 24 * HOUR
    assert Observed(1, 0, uptime=24 * HOUR, failures=0).mtbf == 48 * HOUR
    assert Observed(1, 0, uptime=24 * HOUR, failures=3).mtbf == 12 * HOUR
    # The assumption is forgotten.
    assert Observed(1, 0, uptime=1e5 * HOUR, failures=10**5).mtbf == pytest.approx(HOUR, rel=1e-3)


def test_failures_make_saves_more_frequent_and_time_without_them_less() -> None:
    seconds = [
        choose_interval(Observed(1, 5, 10 * HOUR, failures)).seconds for failures in range(5)
    ]
    assert seconds == sorted(seconds, reverse=True)
    assert len(set(seconds)) == 5
    assert choose_interval(Observed(1, 5, 20 * HOUR, 2)).seconds > seconds[2]


@pytest.mark.parametrize(
    ("failures", "counted"), [(0, "no failures"), (1, "1 failure"), (3, "3 failures")]
)
def test_the_reason_has_all_measurements(failures: int, counted: str) -> None:
    interval = choose_interval(Observed(0.41, 30, 10.2 * HOUR, failures))
    expected = format_duration((10.2 + 24) * HOUR / (failures + 1))
    assert interval.reason == (
        f"every {format_duration(interval.seconds)}: a save costs 0.41 s, {counted} in 10.2 h, "
        f"the next expected after {expected}; the least loss to be expected"
    )


def test_bounds_hold_for_measurements() -> None:
    assert choose_interval(Observed(0.1, 4000, 0, 9)).seconds == 4000
    assert choose_interval(Observed(500, 0, 0, 9), max_overhead=0.05).seconds == pytest.approx(
        10_000
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((-1, 0, 0, 0), "save_cost=-1"),
        ((0, math.nan, 0, 0), "write_time=nan"),
        ((0, 0, math.inf, 0), "uptime=inf"),
        ((0, 0, 0, -1), "failures=-1"),
    ],
)
def test_invalid_measurements_are_rejected(
    values: tuple[float, float, float, int], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Observed(*values)


def test_invalid_costs_are_rejected() -> None:
    with pytest.raises(ConfigurationError, match="restart_time=-5"):
        Costs(1, 1, -5)


@pytest.mark.parametrize("share", [0, 1, -0.1, math.nan])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ConfigurationError, match="`max_overhead="):
        best_interval(Costs(1), HOUR, share)


@pytest.mark.parametrize("mtbf", [0, -1, math.inf, math.nan])
def test_an_mtbf_is_above_0(mtbf: float) -> None:
    with pytest.raises(ConfigurationError, match="`mtbf="):
        best_interval(Costs(1), mtbf)
