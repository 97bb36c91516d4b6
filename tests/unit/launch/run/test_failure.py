import signal

import pytest

from distrib.launch.hosts.channel import LOST
from distrib.launch.run.failure import RankExit, early_finish, failure_report, is_final, root_cause

KILL = 128 + signal.SIGKILL
TERM = 128 + signal.SIGTERM
ABORT = 128 + signal.SIGABRT
SEGV = 128 + signal.SIGSEGV


def ended(*codes: int, by_launcher: tuple[int, ...] = ()) -> list[RankExit]:
    """The exits of ranks 0, 1, ... with these codes, in this order."""
    return [RankExit(rank, "h", code, rank in by_launcher) for rank, code in enumerate(codes)]


@pytest.mark.parametrize(
    ("codes", "rank", "code"),
    [
        # One rank's own error, whatever the other ranks report and when.
        ((1, 76, 76), 0, 1),
        ((76, 76, 1), 2, 1),
        ((ABORT, ABORT, 2), 2, 2),
        ((76, 75, 3), 2, 3),
        # Errors that need a person count most.
        ((1, 76, 78), 2, 78),
        ((KILL, 65, 76), 1, 65),
        ((75, 70), 1, 70),
        ((76, 64), 1, 64),
        # Asked to stop.
        ((75, 75), 0, 75),
        ((76, 75), 1, 75),
        # A rank was killed; the other ranks' errors are symptoms.
        ((KILL, 76, 76), 0, 76),
        ((76, KILL), 1, 76),
        ((KILL, 1, 1), 0, 76),
        ((TERM, 76), 0, 76),
        ((LOST, 76), 0, 76),
        ((76, 76, LOST), 2, 76),
        ((SEGV, 76), 0, 76),
        ((ABORT, ABORT), 0, 76),
        ((76, 76), 0, 76),
        # The first of equals.
        ((3, 2), 0, 3),
        ((0, 0, 2), 2, 2),
    ],
)
def test_the_root_cause(codes: tuple[int, ...], rank: int, code: int) -> None:
    cause = root_cause(ended(*codes))
    assert cause is not None
    assert (cause.rank, cause.exit_code) == (rank, code)


@pytest.mark.parametrize(
    ("code", "is_own"),
    [(0, False), (1, True), (2, True), (75, False), (76, False), (78, False), (KILL, False)],
)
def test_exit_codes_that_a_script_chooses(code: int, is_own: bool) -> None:
    assert RankExit(0, "h", code).is_own == is_own


def test_all_finished() -> None:
    assert root_cause(ended(0, 0)) is None


def test_a_kill_by_the_launcher_is_not_the_cause() -> None:
    first = root_cause(ended(76, KILL, 1, by_launcher=(1, 2)))
    assert first is not None
    assert (first.rank, first.exit_code) == (0, 76)
    preempted = root_cause(ended(KILL, 75, by_launcher=(0,)))
    assert preempted is not None
    assert preempted.exit_code == 75


def test_among_equals_the_rank_that_wrote_an_error_first() -> None:
    """A rank with an error may take longer to end than those that lost it."""
    cause = root_cause(ended(1, 1, 1), failed_ranks=[2, 0, 1])
    assert cause is not None
    assert cause.rank == 2


def test_a_kill_before_the_first_error_explains_it() -> None:
    cause = root_cause(ended(KILL, 1, 1), failed_ranks=[1, 2])
    assert cause is not None
    assert cause.rank == 0


def test_an_error_before_a_crash_explains_it() -> None:
    """Horovod crashes where ranks call different collectives, as after an error on one of them."""
    exits = ended(SEGV, 1)
    cause = root_cause(exits, failed_ranks=[1, 0])
    assert cause == exits[1]
    assert not is_final(exits[0], exits[:1], failed_ranks=[1, 0])
    assert root_cause(exits, failed_ranks=[0, 1]) == exits[0]


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ((76, 0), 1),
        ((0, ABORT), 0),
        ((76, 0, 0), 1),
        ((0, 0), None),
        ((0, 1), None),
        ((0, KILL), None),
        ((0, LOST), None),
        ((0, 76, KILL), None),
        ((0, 75), None),
        ((0, 78), None),
        ((76, 76), None),
    ],
)
def test_a_rank_that_finishes_while_others_need_it(
    codes: tuple[int, ...], rank: int | None
) -> None:
    exits = ended(*codes)
    early = early_finish(root_cause(exits), exits)
    assert (early and early.rank) == rank


@pytest.mark.parametrize(
    ("codes", "failed_ranks", "final"),
    [
        ((), [], False),
        ((0,), [], False),
        ((1,), [], True),
        ((1,), [0, 1], True),
        ((1,), [1, 0], False),  # Rank 1 wrote an error earlier and is still running.
        ((1,), [1], False),
        ((1, 1), [1, 0], True),
        ((KILL,), [1], True),
        ((76,), [], False),
        ((75,), [], False),
        ((ABORT,), [], False),
    ],
)
def test_when_the_cause_is_final(
    codes: tuple[int, ...], failed_ranks: list[int], final: bool
) -> None:
    exits = ended(*codes)
    assert is_final(root_cause(exits, failed_ranks), exits, failed_ranks) is final


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "rank 0 on h ended with exit code 1; its own output says why. (exit code 1)"),
        (KILL, "rank 0 on h was killed by SIGKILL. Run the same command again: it resumes from "
         "the last checkpoint. (exit code 76)"),
        (LOST, "the connection to rank 0 on h was lost. Run the same command again: it resumes "
         "from the last checkpoint. (exit code 76)"),
        (128 + 35, "rank 0 on h was killed by signal 35. Run the same command again: it resumes "
         "from the last checkpoint. (exit code 76)"),
        (75, "stopped as requested. Run the same command again: it resumes from there. "
         "(exit code 75)"),
    ],
)  # fmt: skip
def test_the_failure_report(code: int, text: str) -> None:
    (cause,) = ended(code)
    assert failure_report(cause) == text


def test_the_failure_report_of_a_rank_that_the_launcher_ended() -> None:
    (cause,) = ended(TERM, by_launcher=(0,))
    assert failure_report(cause) == (
        "rank 0 on h was killed by SIGTERM. Run the same command again: it resumes from the last "
        "checkpoint, if there is one. (exit code 76)"
    )


def test_the_failure_report_repeats_the_error() -> None:
    (cause,) = ended(2)
    text = "rank 0 on h ended with exit code 2: KeyError: 'x'. (exit code 2)"
    assert failure_report(cause, "KeyError: 'x'") == text
