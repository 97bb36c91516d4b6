import pytest

from distrib.heartbeat import OUTSIDE, STARTING, TRAINING
from distrib.launch.hosts.placement import Host, place_ranks
from distrib.launch.run import hang_detector
from distrib.launch.run.hang_detector import (
    START_SECONDS,
    HangDetector,
    HangTimeouts,
    Progress,
)

PLACEMENTS = place_ranks([Host("h0", 1), Host("h1", 1)], 2)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(hang_detector.time, "monotonic", lambda: clock.now)
    return clock


def test_no_heartbeat_in_training_is_a_hang(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts(step=60))
    detector.record(0, {"phase": TRAINING, "step": 17})
    detector.record(1, {"phase": TRAINING, "step": 18})
    clock.now += 59
    assert detector.find_hang(PLACEMENTS) is None
    clock.now += 1
    hang = detector.find_hang(PLACEMENTS)
    assert hang is not None
    assert "no rank has made progress for 60 s (last step 18)" in hang
    assert "--step-timeout" in hang


def test_one_rank_with_progress_is_no_hang(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts(step=60))
    detector.record(1, {"phase": TRAINING})
    for _ in range(10):
        clock.now += 50
        detector.record(0, {"phase": TRAINING})
        assert detector.find_hang(PLACEMENTS) is None
    # Unless it has ended.
    assert detector.find_hang(PLACEMENTS[1:]) is not None


def test_no_timeout(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts(step=0))
    detector.record(0, {"phase": TRAINING})
    clock.now += 1e9
    assert detector.find_hang(PLACEMENTS) is None


def test_before_fit_there_is_no_timeout_by_default(clock: Clock) -> None:
    clock.now += 1e9
    assert HangDetector(HangTimeouts()).find_hang(PLACEMENTS) is None


def test_no_rank_runs(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts(start=1))
    clock.now += 10
    assert detector.find_hang([]) is None


@pytest.mark.parametrize("fit_begins", [False, True])
def test_the_start_timeout(fit_begins: bool, clock: Clock) -> None:
    detector = HangDetector(HangTimeouts(start=30))
    if fit_begins:
        clock.now += 29
        detector.record(0, {"phase": STARTING})
    clock.now += 29
    assert detector.find_hang(PLACEMENTS) is None
    clock.now += 1
    hang = detector.find_hang(PLACEMENTS)
    assert hang is not None
    assert "--start-timeout" in hang


def test_the_first_batch_has_a_longer_timeout(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts(step=60))
    detector.record(0, {"phase": STARTING})
    clock.now += START_SECONDS - 1
    assert detector.find_hang(PLACEMENTS) is None
    clock.now += 1
    assert detector.find_hang(PLACEMENTS) is not None


def test_after_fit_there_is_no_timeout(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts(step=60))
    detector.record(0, {"phase": TRAINING})
    detector.record(1, {"phase": TRAINING})
    detector.record(0, {"phase": OUTSIDE})
    clock.now += 1e9
    assert detector.find_hang(PLACEMENTS) is None


def test_all_ranks_wait_in_a_collective_outside_of_fit(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts(step=600))
    waiting = {"phase": OUTSIDE, "collective": "barrier"}
    for placement in PLACEMENTS:
        detector.record(placement.rank, waiting)
    clock.now += 601
    assert detector.find_hang(PLACEMENTS) is not None
    detector.record(0, {"phase": OUTSIDE, "collective": None})
    clock.now += 601
    assert detector.find_hang(PLACEMENTS) is None


def test_the_chief_reports_progress() -> None:
    detector = HangDetector(HangTimeouts())
    detector.record(0, {"phase": STARTING, "run": "a", "resumed": 5, "committed": 5})
    detector.record(1, {"phase": TRAINING, "step": 9})
    assert detector.progress == Progress(5, 5, trained=True)
    detector.record(0, {"phase": TRAINING, "run": "a", "resumed": 5, "committed": 8})
    assert detector.progress == Progress(5, 8, trained=True)
    detector.record(0, {"phase": STARTING, "run": "b", "resumed": 0, "committed": 1})
    assert detector.progress == Progress(5, 9, trained=True), "undone by the second `fit`"


def test_a_fit_that_the_next_attempt_skips_still_counts() -> None:
    before = HangDetector(HangTimeouts())
    before.record(0, {"phase": TRAINING, "run": "a", "resumed": 0, "committed": 60})
    before.record(0, {"phase": TRAINING, "run": "b", "resumed": 0, "committed": 4})
    detector = HangDetector(HangTimeouts(), before.runs)
    detector.record(0, {"phase": TRAINING, "run": "b", "resumed": 4, "committed": 9})
    assert detector.progress == Progress(64, 69, trained=True)


def after(seconds: float, clock: Clock, detector: HangDetector, *wait_seconds: float) -> str | None:
    clock.now += seconds
    for rank, total in enumerate(wait_seconds):
        detector.record(rank, {"phase": TRAINING, "wait_seconds": total})
    return detector.find_stragglers(FOUR)


FOUR = place_ranks([Host("h0", 2), Host("h1", 2)], 4)


def test_a_rank_that_never_waits_is_slow(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts())
    assert after(0, clock, detector, 5, 5, 5, 5) is None
    assert after(29, clock, detector, 20, 20, 20, 6) is None
    assert after(1, clock, detector, 20, 21, 19, 6) == (
        "slow: rank 3 on h1; the other ranks wait 50% of the time"
    )
    assert after(30, clock, detector, 35, 35, 35, 7) is None  # Reported already.
    assert after(30, clock, detector, 35, 36, 36, 8) is None  # Slow no more.
    assert after(30, clock, detector, 50, 50, 36, 8) == (
        "slow: rank 2 on h1, rank 3 on h1; the other ranks wait 47% of the time"
    )


def test_ranks_that_wait_a_little_for_each_other(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts())
    after(0, clock, detector, 0, 0, 0, 0)
    assert after(30, clock, detector, 6, 3, 1, 5) is None


def test_one_rank_and_ranks_without_heartbeats(clock: Clock) -> None:
    detector = HangDetector(HangTimeouts())
    for _ in range(3):
        assert after(30, clock, detector, 0) is None
        assert detector.find_stragglers(FOUR[:1]) is None
        assert detector.find_stragglers([]) is None
