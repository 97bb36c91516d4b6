from distrib.launch.hosts.channel import LOST
from distrib.launch.run.failure import End
from distrib.launch.run.liveness import Progress
from distrib.launch.run.restarts import LONGEST_PAUSE, Restarts, Verdict
from distrib.launch.run.supervisor import Result

KILLED = 137


def judge(
    restarts: Restarts, code: int, resumed: int = 0, committed: int = 0, asked: bool = False
) -> Verdict:
    result = Result(End(1, "h1", code), None)
    return restarts.judge(result, Progress(resumed, committed), "OSError: x", asked)


def test_the_end() -> None:
    verdict = Restarts(5).judge(Result(None, None), Progress(), "", False)
    assert verdict == Verdict(0, 0.0, "")


def test_attempts_that_gain_nothing_are_counted_to_the_last() -> None:
    restarts = Restarts(4)
    assert judge(restarts, KILLED, 0, 25) == Verdict(
        None, 0.0, "rank 1 on h1 was killed by SIGKILL: OSError: x. Starting again now."
    )
    pauses = [judge(restarts, code, 25, 25).pause for code in (1, 75, LOST)]
    assert pauses == [0.0, 5.0, 15.0]
    last = judge(restarts, 1, 25, 25)
    assert last.exit_code == 70
    assert "4 attempts in a row have gained no step beyond 25" in last.reason
    assert "rank 1 on h1 ended with exit code 1: OSError: x" in last.reason


def test_a_gain_starts_the_count_anew() -> None:
    restarts = Restarts(2)
    for step in range(10):
        assert judge(restarts, 1, step, step + 1).exit_code is None
        assert judge(restarts, 1, step + 1, step + 1).exit_code is None


def test_a_commit_that_nobody_lived_to_tell_of_is_a_gain() -> None:
    restarts = Restarts(2)
    assert judge(restarts, KILLED, 0, 0).exit_code is None
    # It began at 5, so the one before has gained 5 steps; this one is the first without a gain.
    assert judge(restarts, KILLED, 5, 5).exit_code is None
    assert judge(restarts, KILLED, 5, 5).exit_code == 70


def test_falling_back_is_no_gain() -> None:
    """The newest checkpoint was damaged, so the run has to do again what it had done."""
    restarts = Restarts(2)
    assert judge(restarts, KILLED, 0, 50).exit_code is None
    assert judge(restarts, KILLED, 40, 45).exit_code is None
    assert judge(restarts, KILLED, 45, 50).exit_code == 70


def test_a_request_to_stop_is_obeyed() -> None:
    verdict = judge(Restarts(5), 75, asked=True)
    assert verdict.exit_code == 75
    assert "Run the same command again" in verdict.reason


def test_without_restarts() -> None:
    assert judge(Restarts(0), 1).exit_code == 1
    assert judge(Restarts(0), KILLED).exit_code == 76


def test_what_only_a_person_can_mend() -> None:
    for code in (64, 65, 70, 78):
        assert judge(Restarts(5), code).exit_code == code


def test_a_hang_is_a_reason_of_its_own() -> None:
    end = End(0, "h0", 134, by_launcher=True)
    verdict = Restarts(5).judge(Result(end, "the job hangs"), Progress(), "", False)
    assert verdict.reason == "the job was hanging. Starting again now."


def test_pauses_grow_to_a_limit() -> None:
    restarts = Restarts(100)
    pauses = [judge(restarts, 1).pause for _ in range(50)]
    assert pauses[:5] == [0.0, 5.0, 15.0, 45.0, 60.0]
    assert pauses[-1] == LONGEST_PAUSE
