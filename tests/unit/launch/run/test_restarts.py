import pytest

from distrib.launch.hosts.channel import LOST
from distrib.launch.run.error_text import ErrorText
from distrib.launch.run.failure import RankExit
from distrib.launch.run.hang_detector import Progress
from distrib.launch.run.restarts import MAX_DELAY, Decision, Failure, Restarts
from distrib.launch.run.supervisor import AttemptResult

KILLED = 137


def decide(
    restarts: Restarts,
    code: int,
    resumed: int = 0,
    committed: int = 0,
    stop: bool = False,
    *,
    trained: bool = True,
    error: str = "OSError: x",
    step: int | None = None,
    mistake: str | None = None,
) -> Decision:
    result = AttemptResult(RankExit(1, "h1", code), None, mistake)
    failure = Failure(ErrorText(error, (error,)), step)
    return restarts.decide(result, Progress(resumed, committed, trained), failure, stop)


def test_all_ranks_finished() -> None:
    decision = Restarts(5).decide(AttemptResult(None, None), Progress(), Failure(), False)
    assert decision == Decision(0, 0.0, "")


def test_the_job_fails_after_enough_attempts_without_progress() -> None:
    restarts = Restarts(4)
    assert decide(restarts, KILLED, 0, 25) == Decision(
        None, 0.0, "rank 1 on h1 was killed by SIGKILL: OSError: x. Starting again now."
    )
    delays = [decide(restarts, code, 25, 25).delay for code in (1, 76, LOST)]
    assert delays == [0.0, 5.0, 15.0]
    last = decide(restarts, 1, 25, 25)
    assert last.exit_code == 70
    assert "4 attempts in a row have made no progress beyond 25" in last.reason
    assert "rank 1 on h1 ended with exit code 1: OSError: x" in last.reason


def test_progress_resets_the_count() -> None:
    restarts = Restarts(2)
    for step in range(10):
        assert decide(restarts, KILLED, step, step + 1).exit_code is None
        assert decide(restarts, KILLED, step + 1, step + 1).exit_code is None


def test_a_commit_that_was_not_reported_is_progress() -> None:
    restarts = Restarts(2)
    assert decide(restarts, KILLED, 0, 0).exit_code is None
    # It began at 5, so the one before gained 5 steps; this is the first one without progress.
    assert decide(restarts, KILLED, 5, 5).exit_code is None
    assert decide(restarts, KILLED, 5, 5).exit_code == 70


def test_repeating_steps_is_no_progress() -> None:
    """The newest checkpoint was damaged, so the run repeats steps."""
    restarts = Restarts(2)
    assert decide(restarts, KILLED, 0, 50).exit_code is None
    assert decide(restarts, KILLED, 40, 45).exit_code is None
    assert decide(restarts, KILLED, 45, 50).exit_code == 70


def test_a_request_to_stop_ends_the_job() -> None:
    decision = decide(Restarts(5), 75, stop=True)
    assert decision.exit_code == 75
    assert "Run the same command again" in decision.reason


def test_without_restarts() -> None:
    assert decide(Restarts(0), 1).exit_code == 1
    assert decide(Restarts(0), KILLED).exit_code == 76


def test_non_retryable_exit_codes() -> None:
    for code in (64, 65, 70, 78):
        assert decide(Restarts(5), code).exit_code == code


def test_a_hang_is_named_as_the_reason() -> None:
    cause = RankExit(0, "h0", 134, by_launcher=True)
    result = AttemptResult(cause, "the job hangs")
    decision = Restarts(5).decide(result, Progress(), Failure(), False)
    assert decision.reason == "the job was hanging. Starting again now."


def test_delays_grow_to_a_maximum() -> None:
    restarts = Restarts(100)
    delays = [decide(restarts, KILLED).delay for _ in range(50)]
    assert delays[:5] == [0.0, 5.0, 15.0, 45.0, 60.0]
    assert delays[-1] == MAX_DELAY


TRANSIENT = "URLError: <urlopen error [Errno 111] Connection refused>"


@pytest.mark.parametrize("code", [1, 2, 3, 127])
def test_a_failure_before_anything_was_trained_ends_the_job(code: int) -> None:
    decision = decide(Restarts(5), code, trained=False, error="ImportError: no x")
    assert decision == Decision(
        code,
        0.0,
        "the job has not trained a batch yet, so it is not started again: rank 1 on h1 "
        f"ended with exit code {code}: ImportError: no x. (exit code {code})",
    )


@pytest.mark.parametrize("code", [75, 76, 134, KILLED, 139, LOST])
def test_what_may_pass_is_restarted_before_anything_was_trained(code: int) -> None:
    assert decide(Restarts(5), code, trained=False).exit_code is None


def test_an_exception_that_may_pass_is_restarted() -> None:
    restarts = Restarts(3)
    decisions = [decide(restarts, 1, trained=False, error=TRANSIENT, step=3) for _ in range(3)]
    assert [decision.exit_code for decision in decisions] == [None, None, 70]


def test_a_failure_to_start_after_training_is_restarted_once() -> None:
    """A host that has replaced another one may lack a module."""
    restarts = Restarts(5)
    assert decide(restarts, KILLED).exit_code is None
    assert decide(restarts, 1, trained=False).exit_code is None
    assert decide(restarts, 1, trained=False).exit_code == 70


def test_the_same_error_at_the_same_step_twice_in_a_row_ends_the_job() -> None:
    restarts = Restarts(5)
    assert decide(restarts, 1, 0, 5, step=7).exit_code is None
    assert decide(restarts, 1, 5, 5, step=8).exit_code is None
    assert decide(restarts, 1, 5, 5, step=8, error="KeyError: x").exit_code is None
    assert decide(restarts, KILLED, 5, 5, step=8).exit_code is None
    assert decide(restarts, 1, 5, 10, step=12, error="KeyError: y").exit_code is None
    last = decide(restarts, 1, 10, 10, step=12, error="KeyError: x.")
    assert last == Decision(
        70,
        0.0,
        "given up: two attempts in a row have failed after step 12 with the same error: rank 1 on "
        "h1 ended with exit code 1: KeyError: x. Fix the cause and run the same command again. "
        "(exit code 70)",
    )


@pytest.mark.parametrize("attempts", [0, 5])
def test_ranks_that_do_not_belong_together_end_the_job(attempts: int) -> None:
    decision = decide(Restarts(attempts), 76, mistake="rank 0 waits")
    assert decision.exit_code == 70
    assert decision.reason.startswith("rank 0 waits. All ranks must ")
    assert decide(Restarts(5), 75, stop=True, mistake="rank 0 waits").exit_code == 75
