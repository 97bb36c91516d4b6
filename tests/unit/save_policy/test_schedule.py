import pytest

from distrib.save_policy import schedule
from distrib.save_policy.interval import Observed
from distrib.save_policy.schedule import SaveSchedule, SaveTimer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(schedule.time, "monotonic", lambda: clock.now)
    return clock


def nothing_seen() -> Observed:
    raise AssertionError("nobody asked for it")


def test_every_so_many_steps() -> None:
    due = SaveTimer(SaveSchedule(steps=10), nothing_seen)
    due.was(0)
    assert [step for step in range(1, 25) if due.at(step)][:2] == [10, 11]
    due.was(11)
    assert not due.at(19)
    assert due.at(20)
    due.was(20)
    assert due.at(35)  # Several steps may be one call.


def test_every_so_many_seconds(clock: Clock) -> None:
    due = SaveTimer(SaveSchedule(seconds=30), nothing_seen)
    clock.now += 29
    assert not due.at(5)
    clock.now += 1
    assert due.at(6)
    due.was(6)
    assert not due.at(7)


def test_at_the_end_of_each_epoch() -> None:
    due = SaveTimer(SaveSchedule(epochs=True), nothing_seen)
    assert not due.at(10)
    due.epoch_ended()
    assert due.at(11)
    assert due.at(12)  # Until it is made.
    due.was(12)
    assert not due.at(13)
    other = SaveTimer(SaveSchedule(steps=100), nothing_seen)
    other.was(0)
    other.epoch_ended()
    assert not other.at(11)


def test_as_often_as_pays(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen = [Observed(0.1, 0.2, 3600.0, 1)]
    due = SaveTimer(SaveSchedule(auto=True), lambda: seen[-1])
    assert not due.at(1)
    assert capsys.readouterr().err.count("saving every") == 1
    clock.now += 3600
    assert due.at(2)
    due.was(2)
    assert not due.at(3)
    assert "saving" not in capsys.readouterr().err  # It has not changed by much.
    seen.append(Observed(10.0, 0.2, 3600.0, 1))
    clock.now += 3600
    due.at(4)
    assert "saving" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "within"),
    [
        (SaveSchedule(epochs=True), False),
        (SaveSchedule(steps=1), True),
        (SaveSchedule(seconds=1), True),
        (SaveSchedule(auto=True), True),
    ],
)
def test_what_needs_data_that_can_be_resumed(made: SaveSchedule, within: bool) -> None:
    assert made.within_epochs is within
