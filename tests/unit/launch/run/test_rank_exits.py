import signal
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


def test_of_errors_read_in_one_moment_the_symptom_is_not_the_cause(display: Display) -> None:
    exits = RankExits(display)
    display.receive([(0, STDERR, SYMPTOM), (1, STDERR, MISTAKE)])
    first = exits.add(PLACEMENTS[0], 1, by_launcher=False)
    assert exits.cause() == first
    assert not exits.is_final(first)
    second = exits.add(PLACEMENTS[1], 1, by_launcher=False)
    assert exits.cause() == second
    assert exits.is_final(second)


def test_of_symptoms_the_first_is_the_cause(display: Display) -> None:
    exits = RankExits(display)
    display.receive([(2, STDERR, SYMPTOM)])
    display.receive([(0, STDERR, SYMPTOM)])
    exits.add(PLACEMENTS[0], 1, by_launcher=False)
    first = exits.add(PLACEMENTS[2], 1, by_launcher=False)
    assert exits.cause() == first


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


def test_what_ranks_write_while_they_are_ended_is_no_cause(display: Display) -> None:
    exits = RankExits(display)
    exits.note_errors()
    display.receive([(0, STDERR, MISTAKE), (1, STDERR, b"Fatal Python error: Aborted\n")])
    assert exits.add(PLACEMENTS[0], TERM, by_launcher=True).by_launcher
    assert exits.add(PLACEMENTS[1], ABORT, by_launcher=True).by_launcher
