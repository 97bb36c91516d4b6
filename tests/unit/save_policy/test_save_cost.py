import pytest

from distrib.save_policy import save_cost
from distrib.save_policy.save_cost import SaveCost


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(save_cost, "time", clock)
    return clock


def steps(cost: SaveCost, clock: Clock, count: int, seconds: float, writing: bool = False) -> None:
    for _ in range(count):
        clock.now += seconds
        cost.step(writing)


def save(cost: SaveCost, clock: Clock, seconds: float) -> None:
    with cost.saving():
        clock.now += seconds


def test_without_a_slowdown_the_cost_is_the_wait(clock: Clock) -> None:
    cost = SaveCost()
    assert cost.save_cost == 0
    save(cost, clock, 0.3)
    assert cost.save_cost == pytest.approx(0.3)
    steps(cost, clock, 10, 0.1)
    save(cost, clock, 0.5)
    steps(cost, clock, 10, 0.1)
    assert cost.save_cost == pytest.approx(0.4)


def test_slower_steps_during_the_write_are_part_of_the_cost(clock: Clock) -> None:
    cost = SaveCost()
    steps(cost, clock, 11, 0.1)
    for _ in range(3):
        save(cost, clock, 0.2)
        cost._was_writing = True  # The write runs from here on.
        steps(cost, clock, 3, 0.15, writing=True)
        steps(cost, clock, 1, 0.15)
        steps(cost, clock, 5, 0.1)
    assert cost.save_cost == pytest.approx(0.2 + 4 * 0.05)


def test_the_time_between_epochs_is_no_step(clock: Clock) -> None:
    cost = SaveCost()
    steps(cost, clock, 5, 0.1)
    cost.skip_next_step()
    clock.now += 1000
    steps(cost, clock, 1, 0.1, writing=True)
    steps(cost, clock, 2, 0.1, writing=True)
    save(cost, clock, 0.1)
    assert cost.save_cost == pytest.approx(0.1)


def test_step_time_is_the_median_of_all_steps(clock: Clock) -> None:
    cost = SaveCost()
    assert (cost.step_time, cost.last_wait) == (0, 0)
    steps(cost, clock, 4, 0.1)
    save(cost, clock, 0.3)
    cost._was_writing = True
    steps(cost, clock, 1, 0.5)
    assert cost.step_time == pytest.approx(0.1)
    assert cost.last_wait == pytest.approx(0.3)
