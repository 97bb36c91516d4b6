import pytest

from distrib.heartbeat import OUTSIDE, STARTING, TRAINING
from distrib.launch import watch
from distrib.launch.placement import Host, assign
from distrib.launch.watch import START_SECONDS, Limits, Progress, Watch

SLOTS = assign([Host("h0", 1), Host("h1", 1)], 2)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock.now)
    return clock


def test_silence_in_training_is_a_hang(clock: Clock) -> None:
    one = Watch(Limits(step=60))
    one.hear(0, {"phase": TRAINING, "step": 17})
    one.hear(1, {"phase": TRAINING, "step": 18})
    clock.now += 59
    assert one.hang(SLOTS) is None
    clock.now += 1
    hang = one.hang(SLOTS)
    assert hang is not None
    assert "no rank has got on for 60 s (last step 18)" in hang
    assert "--step-timeout" in hang


def test_a_rank_that_gets_on_is_enough(clock: Clock) -> None:
    one = Watch(Limits(step=60))
    one.hear(1, {"phase": TRAINING})
    for _ in range(10):
        clock.now += 50
        one.hear(0, {"phase": TRAINING})
        assert one.hang(SLOTS) is None
    # Unless it has ended since.
    assert one.hang(SLOTS[1:]) is not None


def test_no_limit(clock: Clock) -> None:
    one = Watch(Limits(step=0))
    one.hear(0, {"phase": TRAINING})
    clock.now += 1e9
    assert one.hang(SLOTS) is None


def test_what_happens_before_fit_is_not_known(clock: Clock) -> None:
    clock.now += 1e9
    assert Watch(Limits()).hang(SLOTS) is None


def test_nobody_runs(clock: Clock) -> None:
    one = Watch(Limits(start=1))
    clock.now += 10
    assert one.hang([]) is None


@pytest.mark.parametrize("fit_begins", [False, True])
def test_a_limit_of_the_start(fit_begins: bool, clock: Clock) -> None:
    one = Watch(Limits(start=30))
    if fit_begins:
        clock.now += 29
        one.hear(0, {"phase": STARTING})
    clock.now += 29
    assert one.hang(SLOTS) is None
    clock.now += 1
    hang = one.hang(SLOTS)
    assert hang is not None
    assert "--start-timeout" in hang


def test_the_first_batch_may_take_long_but_not_for_ever(clock: Clock) -> None:
    one = Watch(Limits(step=60))
    one.hear(0, {"phase": STARTING})
    clock.now += START_SECONDS - 1
    assert one.hang(SLOTS) is None
    clock.now += 1
    assert one.hang(SLOTS) is not None


def test_after_fit_a_script_may_do_what_it_likes(clock: Clock) -> None:
    one = Watch(Limits(step=60))
    one.hear(0, {"phase": TRAINING})
    one.hear(1, {"phase": TRAINING})
    one.hear(0, {"phase": OUTSIDE})
    clock.now += 1e9
    assert one.hang(SLOTS) is None


def test_progress_is_the_chiefs_word() -> None:
    one = Watch(Limits())
    one.hear(0, {"phase": STARTING, "resumed": 5, "committed": 5})
    one.hear(1, {"phase": TRAINING, "step": 9})
    assert one.progress == Progress(5, 5)
    one.hear(0, {"phase": TRAINING, "resumed": 5, "committed": 8})
    assert one.progress == Progress(5, 8)
