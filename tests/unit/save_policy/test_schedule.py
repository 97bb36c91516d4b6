import pytest

from distrib.save_policy.interval import Observed
from distrib.save_policy.schedule import SaveSchedule, SaveTimer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("distrib.save_policy.schedule.time.monotonic", lambda: clock.now)
    return clock


def no_measurements() -> Observed:
    raise AssertionError("only `auto` needs measurements")


def test_every_n_steps() -> None:
    timer = SaveTimer(SaveSchedule(steps=10), no_measurements)
    timer.record_save(0)
    assert [step for step in range(1, 25) if timer.is_due(step)][:2] == [10, 11]
    timer.record_save(11)
    assert not timer.is_due(19)
    assert timer.is_due(20)
    timer.record_save(20)
    assert timer.is_due(35)  # One call of Keras may train several steps.


def test_every_n_seconds(clock: Clock) -> None:
    timer = SaveTimer(SaveSchedule(seconds=30), no_measurements)
    clock.now += 29
    assert not timer.is_due(5)
    clock.now += 1
    assert timer.is_due(6)
    timer.record_save(6)
    assert not timer.is_due(7)


def test_at_the_end_of_each_epoch() -> None:
    timer = SaveTimer(SaveSchedule(epochs=True), no_measurements)
    assert not timer.is_due(10)
    timer.epoch_ended()
    assert timer.is_due(11)
    assert timer.is_due(12)  # Until it is saved.
    timer.record_save(12)
    assert not timer.is_due(13)
    other = SaveTimer(SaveSchedule(steps=100), no_measurements)
    other.record_save(0)
    other.epoch_ended()
    assert not other.is_due(11)


def test_auto(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    observed = [Observed(0.1, 0.2, 3600.0, 1)]
    timer = SaveTimer(SaveSchedule(auto=True), lambda: observed[-1])
    assert not timer.is_due(1)
    assert capsys.readouterr().err.count("saving every") == 1
    clock.now += 3600
    assert timer.is_due(2)
    timer.record_save(2)
    assert not timer.is_due(3)
    assert "saving" not in capsys.readouterr().err  # The change is small.
    observed.append(Observed(10.0, 0.2, 3600.0, 1))
    clock.now += 3600
    timer.is_due(4)
    assert "saving" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("schedule", "within"),
    [
        (SaveSchedule(epochs=True), False),
        (SaveSchedule(steps=1), True),
        (SaveSchedule(seconds=1), True),
        (SaveSchedule(auto=True), True),
    ],
)
def test_which_schedules_save_within_epochs(schedule: SaveSchedule, within: bool) -> None:
    assert schedule.within_epochs is within
