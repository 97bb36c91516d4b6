import json
import secrets
from pathlib import Path

import pytest

from distrib.checkpoint import attempts
from distrib.checkpoint.attempts import FAILED, FINISHED, FOLDER, GIVEN_UP, Commit, Entry
from distrib.environment import Supervision
from distrib.errors import SupersededError
from distrib.storage.locate import locate
from distrib.storage.location import Location


@pytest.fixture(params=["local", "memory"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    url = str(tmp_path) if request.param == "local" else f"memory://{secrets.token_hex(4)}/run"
    return locate(url, "directory")


def begin(checkpoints: Location, *known: Commit) -> attempts.Attempt:
    return attempts.begin(checkpoints, 1, lambda newest: known)


def train(
    checkpoints: Location, start: int | None, end: str = "", allowed: int = 3, seen: int = 0
) -> Entry:
    """Make an attempt to train, and return its entry as it began."""
    supervisor = Supervision(allowed, seen)
    attempt = attempts.begin(checkpoints, 1, lambda newest: (), start, supervisor)
    began = attempt.entry
    if end:
        attempt.ended(end)
    return began


def newest(checkpoints: Location) -> Entry:
    entry = attempts.newest(checkpoints)
    assert entry is not None
    return entry


def test_an_attempt_knows_how_earlier_ones_ended(
    checkpoints: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    first = begin(checkpoints)
    now += 60
    first.committed(Commit(3, 1))
    now += 999  # Nobody knows whether it still ran.
    second = begin(checkpoints, Commit(3, 1))
    assert (second.number, second.entry.failures, second.entry.uptime) == (2, 1, 60)
    now += 5
    second.ended(FINISHED)
    third = begin(checkpoints, Commit(3, 1))
    assert (third.number, third.entry.failures, third.entry.uptime) == (3, 1, 65)
    assert newest(checkpoints) == third.entry
    third.ended(FAILED, "ValueError: a bug")
    assert newest(checkpoints).error == "ValueError: a bug"
    assert begin(checkpoints).entry.failures == 2


def test_attempts_with_the_same_start_made_no_progress(checkpoints: Location) -> None:
    starts = [0, 0, 20, 20, 20, 20, 30]
    rows = [train(checkpoints, start).stalled for start in starts]
    assert rows == [0, 1, 0, 1, 2, 3, 0]
    # A checkpoint that was damaged is a step back.
    assert train(checkpoints, 20).stalled == 1


@pytest.mark.parametrize("end", [FINISHED, GIVEN_UP])
def test_the_count_restarts_after_the_end_of_a_run(checkpoints: Location, end: str) -> None:
    train(checkpoints, 20)
    assert train(checkpoints, 20, end).stalled == 1
    assert train(checkpoints, 20).stalled == 0


def test_the_count_restarts_after_a_supervisor_gave_up(checkpoints: Location) -> None:
    for seen in range(3):
        assert train(checkpoints, 20, FAILED, allowed=3, seen=seen).stalled == seen
    assert train(checkpoints, 20).stalled == 0


def test_the_count_continues_across_supervisors(checkpoints: Location) -> None:
    rows = [train(checkpoints, 20, seen=seen).stalled for seen in (0, 1, 0, 1, 0)]
    assert rows == [0, 1, 2, 3, 4]


def test_attempts_without_a_supervisor_do_not_count(checkpoints: Location) -> None:
    for _ in range(3):
        assert train(checkpoints, 20, FAILED, allowed=0).stalled == 0
    begin(checkpoints)  # As `distrib checkpoints copy` does.
    assert train(checkpoints, 20).stalled == 0


def test_the_time_of_the_last_save_is_passed_on(checkpoints: Location) -> None:
    begin(checkpoints).committed(Commit(3, 1), save_time=1.5)
    begin(checkpoints)
    assert begin(checkpoints).entry.save_time == 1.5


def test_an_entry_of_an_old_version_can_be_read(checkpoints: Location) -> None:
    begin(checkpoints, Commit(3, 0))
    place = checkpoints / FOLDER / "00000001.json"
    body = json.loads(place.read_bytes())
    for name in ("start", "allowed", "stalled", "seen", "error", "before", "save_time"):
        del body[name]
    place.write_bytes(json.dumps(body).encode())
    assert newest(checkpoints).commits == (Commit(3, 0),)
    assert train(checkpoints, 3).stalled == 0


def test_removed_checkpoints_are_dropped_with_the_next_commit(checkpoints: Location) -> None:
    begin(checkpoints)
    second = begin(checkpoints, Commit(3, 1), Commit(6, 1))
    second.committed(Commit(9, 2))
    second.drop({3, 9})
    second.committed(Commit(12, 2))
    assert newest(checkpoints).commits == (Commit(6, 1), Commit(12, 2))


def test_a_damaged_entry_makes_no_checkpoint_late(checkpoints: Location) -> None:
    attempt = begin(checkpoints)
    (checkpoints / FOLDER / "00000001.json").write_bytes(b"{")
    assert newest(checkpoints).counts(Commit(3, 0))
    with pytest.raises(SupersededError):
        attempt.check()
    assert begin(checkpoints, Commit(3, 0)).number == 2


def test_an_attempt_that_lost_the_race_takes_the_next_number(
    checkpoints: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([None])
    look = attempts.newest
    first = begin(checkpoints)
    monkeypatch.setattr(attempts, "newest", lambda place: next(looks, look(place)))
    second = begin(checkpoints)
    assert (first.number, second.number) == (1, 2)
    with pytest.raises(SupersededError, match="attempt 2"):
        first.check()
    second.check()


def test_an_attempt_ends_if_its_entry_is_overwritten(checkpoints: Location) -> None:
    """As can happen on a store that ignores the condition of an exclusive write."""
    attempt = begin(checkpoints)
    other = begin(locate("memory://" + secrets.token_hex(4), "directory"))
    (checkpoints / FOLDER / "00000001.json").write_bytes(other.entry.encode())
    with pytest.raises(SupersededError, match="attempt 1"):
        attempt.check()


def test_a_stale_listing_hides_no_attempt(
    checkpoints: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        begin(checkpoints)
    monkeypatch.setattr(Location, "names", lambda self: [])
    assert newest(checkpoints).attempt == 3
    assert begin(checkpoints).number == 4
