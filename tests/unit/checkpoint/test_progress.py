import re
import secrets
import threading
from pathlib import Path

import pytest

from distrib.checkpoint import attempts, progress
from distrib.checkpoint.attempts import FAILED, FOLDER, GIVEN_UP, PREEMPTED, Attempt
from distrib.checkpoint.progress import reason_to_give_up, record_failure
from distrib.environment import Supervision
from distrib.errors import SupersededError
from distrib.storage.locate import locate
from distrib.storage.location import Location

THREE = Supervision(attempts=3)


@pytest.fixture(params=["local", "memory"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    url = str(tmp_path) if request.param == "local" else f"memory://{secrets.token_hex(4)}/run"
    return locate(url, "directory")


def begin(checkpoints: Location, start: int = 20, supervisor: Supervision = THREE) -> Attempt:
    return attempts.begin(checkpoints, 1, lambda newest: (), start, supervisor)


def test_the_allowed_number_of_attempts_is_made(checkpoints: Location) -> None:
    for _ in range(3):
        assert reason_to_give_up(checkpoints, 20, THREE) is None
        begin(checkpoints)
    assert reason_to_give_up(checkpoints, 20, THREE) is not None
    assert reason_to_give_up(checkpoints, 21, THREE) is None
    assert reason_to_give_up(checkpoints, 20, Supervision(attempts=4)) is None


def test_the_count_restarts_after_giving_up(checkpoints: Location) -> None:
    for _ in range(3):
        begin(checkpoints)
    assert reason_to_give_up(checkpoints, 20, THREE) is not None
    begin(checkpoints).ended(GIVEN_UP)
    for _ in range(3):
        assert reason_to_give_up(checkpoints, 20, THREE) is None
        begin(checkpoints)
    assert reason_to_give_up(checkpoints, 20, THREE) is not None


def test_without_a_supervisor_the_ledger_is_not_read(
    checkpoints: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(9):
        begin(checkpoints)
    monkeypatch.delattr(attempts, "newest")
    assert reason_to_give_up(checkpoints, 20, Supervision()) is None


def test_the_reason_lists_how_the_attempts_ended(checkpoints: Location) -> None:
    begin(checkpoints).ended(FAILED, "ValueError: a bug")
    begin(checkpoints)
    begin(checkpoints, supervisor=Supervision(3, 1, "rank 1 on h1 was killed")).ended(PREEMPTED)
    begin(checkpoints).ended(FAILED, "LostPeerError: gone")
    last = Supervision(4, 1, "rank 2 on h2 ended with exit code 1: ValueError: its own")
    reason = reason_to_give_up(checkpoints, 20, last)
    assert reason is not None
    reported = [re.sub(r" \(pid .*\) ", " ", line.strip()) for line in reason.splitlines()]
    assert reported[0].startswith("given up: 4 attempts in a row have made no progress beyond 20,")
    assert reported[1:-1] == [
        "attempt 1 ended: ValueError: a bug",
        "attempt 2 ended: rank 1 on h1 was killed",
        "attempt 3 was asked to stop",
        "attempt 4 ended: rank 2 on h2 ended with exit code 1: ValueError: its own",
    ]
    assert reported[-1].endswith("with 4 attempts. (exit code 70)")
    assert re.search(r"\(pid \d+ on \S+, \d{4}-.*UTC, last update after .* s\)", reason)


def test_an_attempt_without_a_record_or_without_an_entry(checkpoints: Location) -> None:
    for _ in range(3):
        begin(checkpoints)
    (checkpoints / FOLDER / "00000002.json").remove()
    reason = reason_to_give_up(checkpoints, 20, THREE)
    assert reason is not None
    assert "\n  attempt 2\n" in reason
    assert reason.count("ended without a record") == 2


def test_an_exception_is_recorded_in_one_short_line(checkpoints: Location) -> None:
    record_failure(begin(checkpoints), ValueError("a\nbug " + 999 * "x"))
    entry = attempts.newest(checkpoints)
    assert entry is not None
    assert entry.end == FAILED
    assert entry.error.startswith("ValueError: a bug xxx")
    assert len(entry.error) == 500


def test_a_superseded_attempt_records_nothing(checkpoints: Location) -> None:
    record_failure(begin(checkpoints), SupersededError("by another"))
    entry = attempts.newest(checkpoints)
    assert entry is not None
    assert entry.end is None


def test_a_failing_store_costs_only_the_record(
    checkpoints: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = begin(checkpoints)

    def refuse(place: Location, content: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Location, "write_bytes", refuse)
    with pytest.warns(UserWarning, match=r"why this attempt has failed \(no space left\)"):
        record_failure(attempt, ValueError("a bug"))


def test_a_store_that_does_not_answer_does_not_delay_the_exit(
    checkpoints: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, answered = begin(checkpoints), threading.Event()
    monkeypatch.setattr(Location, "write_bytes", lambda place, content: answered.wait(30))
    monkeypatch.setattr(progress, "_RECORD_TIMEOUT_SECONDS", 0.05)
    with pytest.warns(UserWarning, match="it does not answer"):
        record_failure(attempt, ValueError("a bug"))
    answered.set()
