import signal
from dataclasses import dataclass, field

import pytest

from distrib.launch.run import escalation
from distrib.launch.run.escalation import Escalation
from distrib.launch.run.failure import RankExit

GRACE = 60.0


@dataclass
class Rank:
    """What a rank was sent."""

    sent: list[int | str] = field(default_factory=list)

    def signal(self, number: int) -> None:
        self.sent.append(number)

    def abandon(self) -> None:
        self.sent.append("abandoned")


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(escalation, "time", clock)
    return clock


def make(ranks: dict[int, Rank], begun: list[str] | None = None) -> Escalation:
    begun = [] if begun is None else begun
    return Escalation(ranks, GRACE, begun.append, lambda: begun.append("begun"))


def pass_seconds(of: Escalation, clock: Clock, seconds: float) -> None:
    for _ in range(int(seconds * 2)):
        clock.now += 0.5
        of.send_due()


def test_from_a_failure_to_giving_up(clock: Clock) -> None:
    ranks, said = {1: Rank()}, list[str]()
    escalation = make(ranks, said)
    escalation.after_exit(RankExit(0, "h", 1))
    assert escalation.is_planned
    assert not escalation.has_begun
    pass_seconds(escalation, clock, 9.5)
    assert ranks[1].sent == []
    pass_seconds(escalation, clock, 0.5)
    assert ranks[1].sent == [signal.SIGTERM]
    pass_seconds(escalation, clock, 10)
    assert ranks[1].sent == [signal.SIGTERM, signal.SIGKILL, "abandoned"]
    assert said == [
        "begun",
        "SIGTERM to rank 1, which has not ended",
        "SIGKILL to rank 1, which has not ended",
        "giving up the connection to rank 1",
    ]


def test_after_a_stop_the_others_have_the_whole_grace_period(clock: Clock) -> None:
    ranks = {0: Rank()}
    escalation = make(ranks)
    escalation.after_exit(RankExit(1, "h", 75))
    pass_seconds(escalation, clock, GRACE - 0.5)
    assert ranks[0].sent == []
    pass_seconds(escalation, clock, 0.5)
    assert ranks[0].sent == [signal.SIGKILL]


def test_a_second_failure_does_not_postpone_the_first_ones_signals(clock: Clock) -> None:
    ranks = {2: Rank()}
    escalation = make(ranks)
    escalation.after_exit(RankExit(0, "h", 1))
    pass_seconds(escalation, clock, 8)
    escalation.after_exit(RankExit(1, "h", 1))
    pass_seconds(escalation, clock, 2)
    assert ranks[2].sent == [signal.SIGTERM]
    pass_seconds(escalation, clock, 20)  # And brings no signals of its own.
    assert ranks[2].sent == [signal.SIGTERM, signal.SIGKILL, "abandoned"]


def test_nothing_is_planned_for_a_rank_that_finished_or_was_ended(clock: Clock) -> None:
    escalation = make({1: Rank()})
    escalation.after_exit(RankExit(0, "h", 0))
    assert not escalation.is_planned
    escalation.end_now(signal.SIGABRT)
    escalation.after_exit(RankExit(0, "h", 134))
    pass_seconds(escalation, clock, 4.5)
    assert escalation._running[1].sent == [signal.SIGABRT]


def test_nothing_is_sent_when_all_have_ended(clock: Clock) -> None:
    said = list[str]()
    make({}, said).end_now(signal.SIGTERM)
    assert said == []


def test_ctrl_c_twice_kills_at_once_and_then_only_gives_up(clock: Clock) -> None:
    ranks = {0: Rank()}
    escalation = make(ranks)
    escalation.end_now(signal.SIGKILL)
    assert ranks[0].sent == [signal.SIGKILL]
    pass_seconds(escalation, clock, 20)
    assert ranks[0].sent == [signal.SIGKILL, "abandoned"]
