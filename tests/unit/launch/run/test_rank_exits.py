import signal
import time
from collections.abc import Iterator

import pytest

from distrib.launch.hosts.placement import Host, place_ranks
from distrib.launch.process.terminal import STDERR
from distrib.launch.run.output import Display
from distrib.launch.run.rank_exits import RankExits

TERM = 128 + signal.SIGTERM
ABORT = 128 + signal.SIGABRT
PLACEMENTS = place_ranks([Host("h", 3)], 3)
HEADER = b"Traceback (most recent call last):\n"
MISTAKE = HEADER + b"ValueError: no\n"
SYMPTOM = HEADER + b"UnknownError: Horovod has been shut down\n"


@pytest.fixture
def display() -> Iterator[Display]:
    display = Display(None, len(PLACEMENTS))
    yield display
    display.close()


def test_a_rank_that_lost_a_peer_is_not_the_cause(display: Display) -> None:
    exits = RankExits(display)
    display.receive([(0, STDERR, SYMPTOM), (1, STDERR, MISTAKE)])  # Read in one moment.
    first = exits.add(PLACEMENTS[0], 1, by_launcher=False)
    assert exits.cause() == first
    assert not exits.is_final(first)
    second = exits.add(PLACEMENTS[1], 1, by_launcher=False)
    assert exits.cause() == second
    assert exits.is_final(second)


def test_a_kill_that_is_noticed_late_explains_the_loss_of_a_peer(display: Display) -> None:
    exits = RankExits(display)
    display.receive([(0, STDERR, SYMPTOM)])
    exits.add(PLACEMENTS[0], 1, by_launcher=False)
    killed = exits.add(PLACEMENTS[1], 128 + signal.SIGKILL, by_launcher=False)
    assert exits.cause() == killed


def test_a_rank_with_an_error_that_the_launcher_ended_ended_by_that_error(display: Display) -> None:
    exits = RankExits(display)
    display.receive([(1, STDERR, MISTAKE)])
    display.receive([(0, STDERR, SYMPTOM), (2, STDERR, SYMPTOM)])
    exits.add(PLACEMENTS[0], 1, by_launcher=False)
    exits.note_errors()
    slow = exits.add(PLACEMENTS[1], TERM, by_launcher=True)
    assert (slow.code, slow.by_launcher) == (1, False)
    assert exits.cause() == slow
    lost = exits.add(PLACEMENTS[2], TERM, by_launcher=True)
    assert (lost.code, lost.by_launcher) == (TERM, True)


@pytest.mark.parametrize(
    "error", [b"terminate called after throwing an instance of 'gloo::IoException'\n", SYMPTOM]
)
def test_an_error_that_another_rank_explains_is_no_reason_to_end(
    display: Display, error: bytes
) -> None:
    exits = RankExits(display)
    display.receive([(0, STDERR, error)])
    exits.note_errors()
    assert exits.add(PLACEMENTS[0], TERM, by_launcher=True).by_launcher


def test_what_ranks_write_while_they_are_ended_is_no_cause(display: Display) -> None:
    exits = RankExits(display)
    exits.note_errors()
    display.receive([(0, STDERR, MISTAKE), (1, STDERR, b"Fatal Python error: Aborted\n")])
    assert exits.add(PLACEMENTS[0], TERM, by_launcher=True).by_launcher
    assert exits.add(PLACEMENTS[1], ABORT, by_launcher=True).by_launcher


def test_what_is_known_of_all_ends(display: Display) -> None:
    exits = RankExits(display)
    exits.add(PLACEMENTS[0], 0, by_launcher=False)
    exits.add(PLACEMENTS[1], 75, by_launcher=False)
    assert exits.finished == [PLACEMENTS[0]]
    assert exits.first_failure == float("inf")
    exits.add(PLACEMENTS[2], 1, by_launcher=False)
    assert exits.first_failure <= time.monotonic()
    assert set(exits.ranks) == {0, 1, 2}


@pytest.mark.parametrize(
    ("code", "error", "is_early"),
    [(76, b"", True), (76, MISTAKE, False), (134, MISTAKE, True)],
)
def test_a_rank_that_finished_too_early(
    display: Display, code: int, error: bytes, is_early: bool
) -> None:
    """An error of its own explains the end of the rank that failed; a crash does not."""
    exits = RankExits(display)
    finished = exits.add(PLACEMENTS[0], 0, by_launcher=False)
    display.receive([(1, STDERR, error)])
    cause = exits.add(PLACEMENTS[1], code, by_launcher=False)
    assert exits.early_finish(cause) == (finished if is_early else None)
