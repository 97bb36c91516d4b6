from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from distrib.heartbeat import OUTSIDE, STARTING, TRAINING
from distrib.launch.hosts.placement import Host, place_ranks
from distrib.launch.run import deadlock
from distrib.launch.run.deadlock import (
    DEADLOCK_SECONDS,
    FIT_WAIT_SECONDS,
    WAIT_SECONDS,
    DeadlockDetector,
)
from distrib.launch.run.hang_detector import RankHeartbeat

PLACEMENTS = place_ranks([Host("h1", 3)], 3)
LONG = DEADLOCK_SECONDS + 1


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlock.time, "monotonic", lambda: 1000.0)


def inside(
    collective: str | None, number: int = 1, ago: float = LONG, **facts: Any
) -> RankHeartbeat:
    mine = {"phase": OUTSIDE, "collective": collective, "collectives": number, "place": "t.py:3"}
    return RankHeartbeat(1000.0 - ago, {**mine, **facts})


def find(heartbeats: Sequence[RankHeartbeat | None], finished: Sequence[int] = ()) -> str | None:
    known = {rank: each for rank, each in enumerate(heartbeats) if each is not None}
    ranks = PLACEMENTS[: len(heartbeats)]
    return DeadlockDetector(known).find(
        [p for p in ranks if p.rank not in finished], [p for p in ranks if p.rank in finished]
    )


def test_ranks_in_different_collectives() -> None:
    assert find([inside("allgather"), inside("barrier"), inside("barrier")]) == (
        "the ranks wait for each other in different collectives: rank 0 on h1 at t.py:3, in "
        "allgather, rank 2 on h1 at t.py:3, in barrier"
    )


@pytest.mark.parametrize(
    "heartbeats",
    [
        [inside("barrier"), inside("barrier")],
        [inside("allgather"), inside(None)],
        [inside("allgather"), None],
        [inside("allgather", ago=1), inside("barrier")],
        # The report that rank 0 has left its collective was lost: rank 1 is in the next one.
        [inside("allgather", 4), inside("barrier", 5)],
    ],
)
def test_ranks_that_may_go_on(heartbeats: list[RankHeartbeat | None]) -> None:
    assert find(heartbeats) is None


def test_a_rank_that_has_finished_is_waited_for() -> None:
    expected = "rank 1 on h1 has ended with exit code 0, but rank 0 on h1 waits for it at t.py:3"
    assert find([inside("barrier", 3), inside(None, 2)], finished=[1]) == expected
    assert find([inside("distrib.init()", 1), None], finished=[1]) == expected
    # The other rank has been in this collective as well.
    assert find([inside("barrier", 3), inside(None, 3)], finished=[1]) is None
    assert find([inside("barrier", 3, ago=1), inside(None, 2)], finished=[1]) is None


def test_a_long_wait_for_a_busy_rank_is_reported_once() -> None:
    long = WAIT_SECONDS + 1
    heartbeats = {0: inside(None, 2, long), 1: inside("barrier", 3, long)}
    detector = DeadlockDetector(heartbeats)
    message = detector.find_long_wait(PLACEMENTS[:2])
    assert message is not None
    assert message.startswith("rank 1 on h1 has waited for 60 s at t.py:3, for rank 0 on h1. ")
    assert detector.find_long_wait(PLACEMENTS[:2]) is None
    heartbeats[1] = inside("barrier", 4, long)
    assert detector.find_long_wait(PLACEMENTS[:2]) is not None


@pytest.mark.parametrize(
    "facts", [{"ago": 5.0}, {"phase": TRAINING, "ago": 99.0}, {"collective": None, "ago": 99.0}]
)
def test_a_wait_that_is_not_reported(facts: Mapping[str, Any]) -> None:
    waiting = inside(**{"collective": "barrier", **facts})
    assert DeadlockDetector({0: inside(None), 1: waiting}).find_long_wait(PLACEMENTS[:2]) is None


def test_a_wait_in_fit_is_reported_once_if_all_ranks_are_silent() -> None:
    long = FIT_WAIT_SECONDS + 1
    waiting = inside("barrier", 2, long, phase=TRAINING)
    training = inside(None, 1, long, phase=TRAINING)
    detector = DeadlockDetector({0: waiting, 1: training})
    message = detector.find_long_wait(PLACEMENTS[:2])
    assert message is not None
    assert message.startswith("rank 0 on h1 has waited for 8 s at t.py:3, for rank 1 on h1. If ")
    assert detector.find_long_wait(PLACEMENTS[:2]) is None
    # A chief that saves sends heartbeats, and the first batch may take long.
    for other in (inside(None, ago=1, phase=TRAINING), inside(None, ago=long, phase=STARTING)):
        assert DeadlockDetector({0: other, 1: waiting}).find_long_wait(PLACEMENTS[:2]) is None


def test_where_a_rank_is() -> None:
    detector = DeadlockDetector({0: inside(None, step=7), 1: inside("barrier")})
    assert [detector.place_of(rank) for rank in range(3)] == ["after step 7", "at t.py:3", ""]


def test_the_time_grows_with_the_number_of_ranks_only() -> None:
    class Counted(dict[int, RankHeartbeat]):
        reads = 0

        def get(self, *arguments: Any) -> Any:
            self.reads += 1
            return super().get(*arguments)

    size = 1000
    ranks = place_ranks([Host("h1", size)], size)
    in_fit = FIT_WAIT_SECONDS + 1
    for heartbeat in (
        inside("barrier"),
        inside("barrier", ago=in_fit, phase=TRAINING),
        inside(None, ago=in_fit, phase=TRAINING),
    ):
        heartbeats = Counted({placement.rank: heartbeat for placement in ranks})
        detector = DeadlockDetector(heartbeats)
        for finished in ((), ranks[: size // 2]):
            detector.find(ranks, finished)
            detector.find_long_wait(ranks)
        assert heartbeats.reads < 40 * size


def test_a_wait_for_very_many_ranks_names_some_of_them() -> None:
    size = 1000
    ranks = place_ranks([Host("h1", size)], size)
    heartbeats = {p.rank: inside(None) for p in ranks}
    heartbeats[0] = inside("barrier", ago=WAIT_SECONDS + 1)
    message = DeadlockDetector(heartbeats).find_long_wait(ranks)
    assert message is not None
    assert "rank 1 on h1, rank 2 on h1" in message
    assert "rank 8 on h1 and 991 more. That is no error" in message
