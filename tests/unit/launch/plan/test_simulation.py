import doctest
import math

import numpy as np
import pytest

from distrib.launch.plan import simulation
from distrib.launch.plan.simulation import Spent, simulate
from distrib.save_policy.interval import Costs
from distrib.save_policy.interval import goodput as predicted

HOUR = 3600.0


def play(lasted: float, interval: float, costs: Costs) -> Spent:
    """Play one attempt event by event, as the step loop and the background thread would."""
    now = restarts = min(lasted, costs.restart_time)
    trained = kept = saves = 0.0
    written = now  # When the save in flight is committed, and what it holds.
    snapshot = 0.0
    while now < lasted:
        begin = max(now + interval, written)
        trained += min(begin, lasted) - now
        if begin >= lasted:
            break
        kept = snapshot
        now = min(begin + costs.save_cost, lasted)
        saves += now - begin
        if begin + costs.save_cost > lasted:
            written = math.inf
            break
        snapshot, written = trained, now + costs.write_time
    if written <= lasted:
        kept = snapshot
    return Spent(kept, trained - kept, saves, restarts)


CASES = [
    (600.0, Costs(5, 60, 300)),
    (600.0, Costs(5, 0, 300)),
    (600.0, Costs(0, 0, 0)),
    (600.0, Costs(0, 60, 0)),
    (100.0, Costs(5, 400, 300)),  # Saves wait for the one before.
    (9000.0, Costs(50, 60, 1000)),  # Few attempts get as far as a save.
]


@pytest.mark.parametrize(("interval", "costs"), CASES)
def test_the_same_as_event_by_event(interval: float, costs: Costs) -> None:
    mtbf, failures, seed = HOUR, 500, 3
    drawn = np.random.default_rng(seed).exponential(mtbf, failures)
    played = [play(float(lasted), interval, costs) for lasted in drawn]
    spent = simulate(interval, costs, mtbf, failures, seed)
    for name in ("kept", "repeated", "saves", "restarts"):
        expected = sum(getattr(one, name) for one in played)
        assert getattr(spent, name) == pytest.approx(expected, rel=1e-9, abs=1e-6), name
    assert spent.total == pytest.approx(drawn.sum(), rel=1e-12)
    assert min(spent.kept, spent.repeated, spent.saves, spent.restarts) >= -1e-6


@pytest.mark.parametrize("interval", [60.0, 300.0, 1000.0, 4000.0])
@pytest.mark.parametrize("costs", [Costs(30, 0, 0), Costs(30, 0, 400), Costs(2, 50, 400)])
def test_agrees_with_the_formula(interval: float, costs: Costs) -> None:
    simulated = simulate(interval, costs, 2 * HOUR, failures=200_000).goodput
    assert simulated == pytest.approx(predicted(interval, costs, 2 * HOUR), abs=0.003)


def test_saves_that_wait_for_writes_agree_too() -> None:
    # The first save of an attempt has none to wait for, which the formula leaves out.
    simulated = simulate(10, Costs(1, 60, 100), 10 * HOUR, failures=200_000).goodput
    assert simulated == pytest.approx(predicted(10, Costs(1, 60, 100), 10 * HOUR), abs=0.002)


def test_longer_intervals_cost_fewer_saves_and_more_repetition() -> None:
    costs = Costs(5, 20, 300)
    curve = [simulate(interval, costs, HOUR) for interval in (50, 100, 200, 400, 800)]
    saves = [spent.saves for spent in curve]
    repeated = [spent.repeated for spent in curve]
    assert saves == sorted(saves, reverse=True)
    assert repeated == sorted(repeated)
    assert len({spent.restarts for spent in curve}) == 1


def test_more_reliable_machines_keep_more() -> None:
    curve = [simulate(300, Costs(5, 20, 300), mtbf).goodput for mtbf in (600, HOUR, 10 * HOUR)]
    assert curve == sorted(curve)


def test_seeded() -> None:
    costs = Costs(5, 20, 300)
    assert simulate(300, costs, HOUR) == simulate(300, costs, HOUR)
    assert simulate(300, costs, HOUR) != simulate(300, costs, HOUR, seed=1)


def test_a_job_that_never_gets_anywhere() -> None:
    spent = simulate(300, Costs(5, 20, 300), mtbf=1)
    assert spent.goodput == 0
    assert spent.restarts == pytest.approx(spent.total)


def test_examples() -> None:
    failed, tried = doctest.testmod(simulation)
    assert tried == 2
    assert failed == 0
