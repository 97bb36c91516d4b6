import doctest
import math

import numpy as np
import pytest

from distrib.launch.plan import simulation
from distrib.launch.plan.simulation import TimeBreakdown, simulate
from distrib.save_policy.interval import Costs
from distrib.save_policy.interval import goodput as predicted

HOUR = 3600.0


def play(uptime: float, interval: float, costs: Costs) -> TimeBreakdown:
    """Simulate one attempt event by event, like the step loop and the background thread."""
    now = restarts = min(uptime, costs.restart_time)
    trained = kept = saves = 0.0
    written = now  # When the save in flight is committed.
    snapshot = 0.0  # Training that it holds.
    while now < uptime:
        begin = max(now + interval, written)
        trained += min(begin, uptime) - now
        if begin >= uptime:
            break
        kept = snapshot
        now = min(begin + costs.save_cost, uptime)
        saves += now - begin
        if begin + costs.save_cost > uptime:
            written = math.inf
            break
        snapshot, written = trained, now + costs.write_time
    if written <= uptime:
        kept = snapshot
    return TimeBreakdown(kept, trained - kept, saves, restarts)


CASES = [
    (600.0, Costs(5, 60, 300)),
    (600.0, Costs(5, 0, 300)),
    (600.0, Costs(0, 0, 0)),
    (600.0, Costs(0, 60, 0)),
    (100.0, Costs(5, 400, 300)),  # A save waits for the one before.
    (9000.0, Costs(50, 60, 1000)),  # Few attempts reach a save.
]


@pytest.mark.parametrize(("interval", "costs"), CASES)
def test_equals_a_simulation_event_by_event(interval: float, costs: Costs) -> None:
    mtbf, failures, seed = HOUR, 500, 3
    drawn = np.random.default_rng(seed).exponential(mtbf, failures)
    played = [play(float(uptime), interval, costs) for uptime in drawn]
    time = simulate(interval, costs, mtbf, failures, seed)
    for name in ("kept", "repeated", "saves", "restarts"):
        expected = sum(getattr(one, name) for one in played)
        assert getattr(time, name) == pytest.approx(expected, rel=1e-9, abs=1e-6), name
    assert time.total == pytest.approx(drawn.sum(), rel=1e-12)
    assert min(time.kept, time.repeated, time.saves, time.restarts) >= -1e-6


@pytest.mark.parametrize("interval", [60.0, 300.0, 1000.0, 4000.0])
@pytest.mark.parametrize("costs", [Costs(30, 0, 0), Costs(30, 0, 400), Costs(2, 50, 400)])
def test_agrees_with_the_formula(interval: float, costs: Costs) -> None:
    simulated = simulate(interval, costs, 2 * HOUR, failures=200_000).goodput
    assert simulated == pytest.approx(predicted(interval, costs, 2 * HOUR), abs=0.003)


def test_agrees_when_saves_wait_for_writes() -> None:
    # The first save of an attempt waits for none, which the formula ignores.
    simulated = simulate(10, Costs(1, 60, 100), 10 * HOUR, failures=200_000).goodput
    assert simulated == pytest.approx(predicted(10, Costs(1, 60, 100), 10 * HOUR), abs=0.002)


def test_longer_intervals_cost_fewer_saves_and_more_repetition() -> None:
    costs = Costs(5, 20, 300)
    curve = [simulate(interval, costs, HOUR) for interval in (50, 100, 200, 400, 800)]
    saves = [time.saves for time in curve]
    repeated = [time.repeated for time in curve]
    assert saves == sorted(saves, reverse=True)
    assert repeated == sorted(repeated)
    assert len({time.restarts for time in curve}) == 1


def test_goodput_grows_with_the_mtbf() -> None:
    curve = [simulate(300, Costs(5, 20, 300), mtbf).goodput for mtbf in (600, HOUR, 10 * HOUR)]
    assert curve == sorted(curve)


def test_the_seed_decides() -> None:
    costs = Costs(5, 20, 300)
    assert simulate(300, costs, HOUR) == simulate(300, costs, HOUR)
    assert simulate(300, costs, HOUR) != simulate(300, costs, HOUR, seed=1)


def test_a_job_without_progress() -> None:
    time = simulate(300, Costs(5, 20, 300), mtbf=1)
    assert time.goodput == 0
    assert time.restarts == pytest.approx(time.total)


def test_examples() -> None:
    failed, tried = doctest.testmod(simulation)
    assert tried == 2
    assert failed == 0
