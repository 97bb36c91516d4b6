import secrets
from pathlib import Path

import pytest

from distrib.checkpoint import attempts
from distrib.checkpoint.attempts import FINISHED, FOLDER, Commit, Entry
from distrib.errors import SupersededError
from distrib.store import Location, locate


@pytest.fixture(params=["local", "memory"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    url = str(tmp_path) if request.param == "local" else f"memory://{secrets.token_hex(4)}/run"
    return locate(url, "directory")


def begin(checkpoints: Location, *known: Commit) -> attempts.Attempt:
    return attempts.begin(checkpoints, 1, lambda newest: known)


def newest(checkpoints: Location) -> Entry:
    entry = attempts.newest(checkpoints)
    assert entry is not None
    return entry


def test_it_knows_how_the_attempts_before_have_ended(
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


def test_what_it_has_removed_is_forgotten_at_its_next_commit(checkpoints: Location) -> None:
    begin(checkpoints)
    second = begin(checkpoints, Commit(3, 1), Commit(6, 1))
    second.committed(Commit(9, 2))
    second.forget({3, 9})
    second.committed(Commit(12, 2))
    assert newest(checkpoints).commits == (Commit(6, 1), Commit(12, 2))


def test_an_entry_that_cannot_be_read_makes_no_checkpoint_late(checkpoints: Location) -> None:
    attempt = begin(checkpoints)
    (checkpoints / FOLDER / "00000001.json").write_bytes(b"{")
    assert newest(checkpoints).counts(Commit(3, 0))
    with pytest.raises(SupersededError):
        attempt.check()
    assert begin(checkpoints, Commit(3, 0)).number == 2


def test_who_looked_too_early_takes_the_next_number(
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


def test_an_entry_that_another_process_wrote_over_ends_it(checkpoints: Location) -> None:
    """As can happen on a store that ignores the condition of an exclusive write."""
    attempt = begin(checkpoints)
    other = begin(locate("memory://" + secrets.token_hex(4), "directory"))
    (checkpoints / FOLDER / "00000001.json").write_bytes(other.entry.encode())
    with pytest.raises(SupersededError, match="attempt 1"):
        attempt.check()


def test_a_listing_that_is_late_hides_no_attempt(
    checkpoints: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        begin(checkpoints)
    monkeypatch.setattr(Location, "names", lambda self: [])
    assert newest(checkpoints).attempt == 3
    assert begin(checkpoints).number == 4
