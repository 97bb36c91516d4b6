import signal

import pytest

from distrib.launch.hosts.channel import LOST
from distrib.launch.run.failure import End, advice, cause, is_known

KILL = 128 + signal.SIGKILL
TERM = 128 + signal.SIGTERM
ABORT = 128 + signal.SIGABRT


def ended(*codes: int, by_launcher: tuple[int, ...] = ()) -> list[End]:
    """Ranks 0, 1, ... that ended with these codes, in this order."""
    return [End(rank, "h", code, rank in by_launcher) for rank, code in enumerate(codes)]


@pytest.mark.parametrize(
    ("codes", "rank", "code"),
    [
        # One rank's own error, whatever the others say and when.
        ((1, 76, 76), 0, 1),
        ((76, 76, 1), 2, 1),
        ((ABORT, ABORT, 2), 2, 2),
        ((76, 75, 3), 2, 3),
        # What only a person can mend counts most.
        ((1, 76, 78), 2, 78),
        ((KILL, 65, 76), 1, 65),
        ((75, 70), 1, 70),
        ((76, 64), 1, 64),
        # Asked to stop.
        ((75, 75), 0, 75),
        ((76, 75), 1, 75),
        # A rank was taken away; the others' errors came of that.
        ((KILL, 76, 76), 0, 76),
        ((76, KILL), 1, 76),
        ((KILL, 1, 1), 0, 76),
        ((TERM, 76), 0, 76),
        ((LOST, 76), 0, 76),
        ((76, 76, LOST), 2, 76),
        ((128 + signal.SIGSEGV, 76), 0, 76),
        ((ABORT, ABORT), 0, 76),
        ((76, 76), 0, 76),
        # The first of equals.
        ((3, 2), 0, 3),
        ((0, 0, 2), 2, 2),
    ],
)
def test_the_cause_and_not_a_symptom(codes: tuple[int, ...], rank: int, code: int) -> None:
    end = cause(ended(*codes))
    assert end is not None
    assert (end.rank, end.exit_code) == (rank, code)


def test_all_finished() -> None:
    assert cause(ended(0, 0)) is None


def test_what_the_launcher_did_is_no_cause() -> None:
    first = cause(ended(76, KILL, 1, by_launcher=(1, 2)))
    assert first is not None
    assert (first.rank, first.exit_code) == (0, 76)
    preempted = cause(ended(KILL, 75, by_launcher=(0,)))
    assert preempted is not None
    assert preempted.exit_code == 75


def test_of_equals_the_one_that_complained_first() -> None:
    """A rank with an error may take longer to end than those that lost it."""
    end = cause(ended(1, 1, 1), complaints=[2, 0, 1])
    assert end is not None
    assert end.rank == 2


def test_a_kill_before_the_first_error_explains_it() -> None:
    end = cause(ended(KILL, 1, 1), complaints=[1, 2])
    assert end is not None
    assert end.rank == 0


@pytest.mark.parametrize(
    ("codes", "complaints", "known"),
    [
        ((), [], False),
        ((0,), [], False),
        ((1,), [], True),
        ((1,), [0, 1], True),
        ((1,), [1, 0], False),  # Rank 1 complained earlier, and has yet to end.
        ((1,), [1], False),
        ((1, 1), [1, 0], True),
        ((KILL,), [1], True),
        ((76,), [], False),
        ((75,), [], False),
        ((ABORT,), [], False),
    ],
)
def test_when_the_cause_is_known(
    codes: tuple[int, ...], complaints: list[int], known: bool
) -> None:
    ends = ended(*codes)
    assert is_known(cause(ends, complaints), ends, complaints) is known


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "rank 0 on h ended with exit code 1, whose own output says why. (exit code 1)"),
        (KILL, "rank 0 on h was killed by SIGKILL. Run the same command again: it goes on from "
         "the last checkpoint. (exit code 76)"),
        (LOST, "the connection to rank 0 on h was lost. Run the same command again: it goes on "
         "from the last checkpoint. (exit code 76)"),
        (128 + 35, "rank 0 on h was killed by signal 35. Run the same command again: it goes on "
         "from the last checkpoint. (exit code 76)"),
        (75, "stopped as it was asked to. Run the same command again: it goes on from there. "
         "(exit code 75)"),
    ],
)  # fmt: skip
def test_advice(code: int, text: str) -> None:
    (end,) = ended(code)
    assert advice(end) == text
