import pytest

from distrib.save_policy import save_cost
from distrib.save_policy.save_cost import SaveCost


class Clock:
    """Time that passes when a test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(save_cost, "time", clock)
    return clock


def steps(watch: SaveCost, clock: Clock, count: int, seconds: float, writing: bool = False) -> None:
    for _ in range(count):
        clock.now += seconds
        watch.step(writing)


def save(watch: SaveCost, clock: Clock, seconds: float) -> None:
    with watch.saving():
        clock.now += seconds


def test_without_a_slowdown_it_costs_what_the_loop_waits(clock: Clock) -> None:
    watch = SaveCost()
    assert watch.save_cost == 0
    save(watch, clock, 0.3)
    assert watch.save_cost == pytest.approx(0.3)
    steps(watch, clock, 10, 0.1)
    save(watch, clock, 0.5)
    steps(watch, clock, 10, 0.1)
    assert watch.save_cost == pytest.approx(0.4)


def test_slower_steps_during_the_write_are_part_of_the_cost(clock: Clock) -> None:
    watch = SaveCost()
    steps(watch, clock, 11, 0.1)
    for _ in range(3):
        save(watch, clock, 0.2)
        watch._was_writing = True  # From here on the write runs.
        steps(watch, clock, 3, 0.15, writing=True)
        steps(watch, clock, 1, 0.15)
        steps(watch, clock, 5, 0.1)
    assert watch.save_cost == pytest.approx(0.2 + 4 * 0.05)


def test_a_pause_between_epochs_is_no_step(clock: Clock) -> None:
    watch = SaveCost()
    steps(watch, clock, 5, 0.1)
    watch.pause()
    clock.now += 1000
    steps(watch, clock, 1, 0.1, writing=True)
    steps(watch, clock, 2, 0.1, writing=True)
    save(watch, clock, 0.1)
    assert watch.save_cost == pytest.approx(0.1)


def test_the_time_of_a_step_is_that_of_all_steps(clock: Clock) -> None:
    watch = SaveCost()
    assert (watch.step_time, watch.last_pause) == (0, 0)
    steps(watch, clock, 4, 0.1)
    save(watch, clock, 0.3)
    watch._was_writing = True
    steps(watch, clock, 1, 0.5)
    assert watch.step_time == pytest.approx(0.1)
    assert watch.last_pause == pytest.approx(0.3)
