import pytest

from distrib.heartbeat import OUTSIDE, STARTING, TRAINING
from distrib.launch.hosts.placement import Host, assign
from distrib.launch.run import liveness
from distrib.launch.run.liveness import START_SECONDS, Limits, Progress, Watch

SLOTS = assign([Host("h0", 1), Host("h1", 1)], 2)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(liveness.time, "monotonic", lambda: clock.now)
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


def after(seconds: float, clock: Clock, one: Watch, *waited: float) -> str | None:
    clock.now += seconds
    for rank, total in enumerate(waited):
        one.hear(rank, {"phase": TRAINING, "wait_seconds": total})
    return one.stragglers(FOUR)


FOUR = assign([Host("h0", 2), Host("h1", 2)], 4)


def test_who_never_waits_is_slow(clock: Clock) -> None:
    one = Watch(Limits())
    assert after(0, clock, one, 5, 5, 5, 5) is None
    assert after(29, clock, one, 20, 20, 20, 6) is None
    assert after(1, clock, one, 20, 21, 19, 6) == (
        "slow: rank 3 on h1; the other ranks wait 50% of the time"
    )
    assert after(30, clock, one, 35, 35, 35, 7) is None  # As is known.
    assert after(30, clock, one, 35, 36, 36, 8) is None  # Not any more.
    assert after(30, clock, one, 50, 50, 36, 8) == (
        "slow: rank 2 on h1, rank 3 on h1; the other ranks wait 47% of the time"
    )


def test_ranks_that_wait_a_little_for_each_other(clock: Clock) -> None:
    one = Watch(Limits())
    after(0, clock, one, 0, 0, 0, 0)
    assert after(30, clock, one, 6, 3, 1, 5) is None


def test_one_alone_and_ranks_that_say_nothing(clock: Clock) -> None:
    one = Watch(Limits())
    for _ in range(3):
        assert after(30, clock, one, 0) is None
        assert one.stragglers(FOUR[:1]) is None
        assert one.stragglers([]) is None
