import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from distrib.checkpoint import commit, transfer
from distrib.checkpoint.attempts import Attempt, Commit
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.manifest import NAME, Manifest
from distrib.checkpoint.orbax_format import DataFile
from distrib.checkpoint.retention import LatestN
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.errors import ConfigurationError, NoLoadableCheckpointError, SupersededError
from distrib.storage.locate import locate
from distrib.storage.location import Location


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """The directory of a run, on the local disk and on an object store."""
    url = str(tmp_path) if request.param == "local" else f"memory://{secrets.token_hex(4)}/run"
    return locate(url, "directory")


@pytest.fixture
def directory(run: Location) -> CheckpointDirectory:
    return CheckpointDirectory(run)


def draft(directory: CheckpointDirectory, attempt: Attempt, step: int, text: str = "") -> Manifest:
    content = (text or f"state {step}").encode()
    place = commit.draft(directory.location, step, attempt.number)
    files = transfer.write([DataFile.of("a/data", content)], place, None)
    root = commit.data_root(directory.location, step, attempt.number)
    return Manifest(step, 0, step, 0.0, files, attempt.number, root=root)


class KeepNothing:
    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        return set()


def add(directory: CheckpointDirectory, attempt: Attempt, *steps: int) -> None:
    for step in steps:
        commit.publish(directory.location, draft(directory, attempt, step))


def load(stored: StoredCheckpoint) -> str:
    stored.verify()
    return (stored.root / "a/data").read_bytes().decode()


def data(directory: CheckpointDirectory, step: int) -> Location:
    (stored,) = (c for c in directory.checkpoints() if c.manifest.step == step)
    return stored.root / "a/data"


def files(place: Location) -> list[str]:
    found = place.filesystem.find(place.path)
    return sorted(path.removeprefix(place.path) for path in found)


def test_an_empty_directory(directory: CheckpointDirectory) -> None:
    assert directory.steps() == []
    assert directory.load_newest(load) is None


def test_the_newest_is_the_one_with_the_highest_number(directory: CheckpointDirectory) -> None:
    add(directory, directory.begin(1), 9, 100, 20)
    assert directory.steps() == [9, 20, 100]
    assert directory.load_newest(load) == "state 100"


def test_a_draft_is_no_checkpoint_and_is_removed_by_the_next_attempt(
    directory: CheckpointDirectory,
) -> None:
    first = directory.begin(1)
    add(directory, first, 1)
    draft(directory, first, 2)
    notes = directory.location / "notes.txt"
    notes.write_bytes(b"mine")
    before = files(directory.location)
    assert directory.load_newest(load) == "state 1"
    directory.remove_orphans(first.number)
    assert files(directory.location) == before  # The writer may still be writing.
    second = directory.begin(1)
    mine = draft(directory, second, 3)
    directory.remove_orphans(second.number)
    commit.publish(directory.location, mine)
    assert directory.steps() == [1, 3]
    assert not [path for path in files(directory.location) if path.startswith(("/2/", "/.2."))]
    assert notes.exists()


def test_damaged_checkpoints_are_quarantined_and_the_one_before_is_loaded(
    directory: CheckpointDirectory,
) -> None:
    add(directory, directory.begin(1), 1, 2, 3)
    data(directory, 3).write_bytes(b"state 4")
    (directory.location / "2" / NAME).write_bytes(b"{")
    damaged_data = files(directory.location)
    with pytest.warns(UserWarning, match=r"is damaged: .*(data has CRC32C|not a readable)") as got:
        assert directory.load_newest(load) == "state 1"
    assert len(got) == 2
    assert directory.steps() == [1]
    assert len(commit.quarantined(directory.location)) == 2
    directory.remove_orphans(99)
    assert len(files(directory.location)) == len(damaged_data)  # Nothing was deleted.
    add(directory, directory.begin(1), 3)
    assert directory.load_newest(load) == "state 3"


def test_the_same_step_damaged_twice_keeps_both(directory: CheckpointDirectory) -> None:
    add(directory, directory.begin(1), 1)
    for content in (b"first", b"second"):
        add(directory, directory.begin(1), 2)
        data(directory, 2).write_bytes(content)
        with pytest.warns(UserWarning, match="damaged"):
            assert directory.load_newest(load) == "state 1"
    assert len(commit.quarantined(directory.location)) == 2
    place = directory.location
    contents = {place.filesystem.cat_file(path) for path in place.filesystem.find(place.path)}
    assert {b"first", b"second"} <= contents


def test_only_damaged_checkpoints_are_an_error_now_and_at_the_next_start(
    directory: CheckpointDirectory,
) -> None:
    add(directory, directory.begin(1), 1)
    data(directory, 1).remove()
    with (
        pytest.warns(UserWarning, match="data is missing"),
        pytest.raises(NoLoadableCheckpointError, match="None of the checkpoints"),
    ):
        directory.load_newest(load)
    with pytest.raises(NoLoadableCheckpointError):
        directory.load_newest(load)


def test_an_older_attempt_cannot_commit_and_damages_nothing(
    directory: CheckpointDirectory,
) -> None:
    old = directory.begin(1)
    add(directory, old, 1)
    of_old = draft(directory, old, 2, "old")
    old.check()
    new = directory.begin(1)
    with pytest.raises(SupersededError, match=r"Attempt 1 of this run .* attempt 2 \(pid"):
        old.check()
    add(directory, new, 2)
    # It had checked before the new one began, and was delayed since.
    with pytest.raises(SupersededError, match="attempt 1, which is this process"):
        commit.publish(directory.location, of_old)
    assert directory.load_newest(load) == "state 2"


def test_a_late_checkpoint_is_ignored_and_replaced(
    directory: CheckpointDirectory,
) -> None:
    old = directory.begin(1)
    add(directory, old, 1)
    late = draft(directory, old, 5, "late")
    new = directory.begin(1)
    commit.publish(directory.location, late)
    assert directory.steps() == [1]
    assert directory.load_newest(load) == "state 1"
    directory.begin(1)  # And stays so.
    assert directory.load_newest(load) == "state 1"
    add(directory, new, 2)
    newest = directory.begin(1)
    add(directory, newest, 5)
    assert directory.load_newest(load) == "state 5"
    directory.remove_orphans(newest.number)
    assert [
        path for path in files(directory.location) if "late" in path or "replaced" in path
    ] == []
    assert len([path for path in files(directory.location) if path.endswith("a/data")]) == 3


def test_pruning_ignores_a_late_checkpoint(directory: CheckpointDirectory) -> None:
    old = directory.begin(1)
    late = draft(directory, old, 9, "late")
    new = directory.begin(1)
    add(directory, new, 1, 2)
    commit.publish(directory.location, late)
    directory.prune(LatestN(1), new)
    assert directory.steps() == [2]
    assert directory.load_newest(load) == "state 2"


def test_a_late_checkpoint_is_loaded_if_there_is_no_other(directory: CheckpointDirectory) -> None:
    old = directory.begin(1)
    late = draft(directory, old, 5, "late")
    directory.begin(1)
    commit.publish(directory.location, late)
    with pytest.warns(UserWarning, match="not among the checkpoints that the newest attempt knew"):
        assert directory.load_newest(load) == "late"


def test_a_copy_made_by_other_tools_is_a_checkpoint(
    directory: CheckpointDirectory, tmp_path: Path
) -> None:
    """One checkpoint without the ledger, also from a store to the disk and the reverse."""
    add(directory, directory.begin(1), 7)
    place = directory.location / "7"
    for target in (tmp_path / "copy", f"memory://{secrets.token_hex(4)}"):
        copy = CheckpointDirectory(locate(str(target), "directory"))
        for path in files(place):
            content = place.filesystem.cat_file(place.path + path)
            (copy.location / ("7" + path)).write_bytes(content)
        assert copy.load_newest(load) == "state 7"
        copy.remove_orphans(99)
        assert copy.begin(1).number == 2  # Number 1 is taken by the folder of the copy.
        assert copy.load_newest(load) == "state 7"


def test_checkpoints_of_the_ledger_are_found_without_a_listing(
    directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = directory.begin(1)
    add(directory, attempt, 1)
    attempt.committed(Commit(1, attempt.number))
    monkeypatch.setattr(Location, "names", lambda self: [])
    assert directory.load_newest(load) == "state 1"
    assert directory.begin(1).number == 2
    assert directory.load_newest(load) == "state 1"


def test_the_files_of_an_earlier_draft_are_not_in_the_checkpoint(tmp_path: Path) -> None:
    directory = CheckpointDirectory(locate(tmp_path, "directory"))
    attempt = directory.begin(1)
    (commit.draft(directory.location, 1, attempt.number) / "junk").write_bytes(b"half")
    add(directory, attempt, 1)
    assert files(directory.location / "1") == ["/a/data", f"/{NAME}"]


def test_partial_folders_on_the_local_disk_are_removed(tmp_path: Path) -> None:
    """A partly removed checkpoint, and a draft of format 1."""
    directory = CheckpointDirectory(locate(tmp_path, "directory"))
    (directory.location / "1" / "arrays").write_bytes(b"half")
    (directory.location / "2.orbax-checkpoint-tmp-7" / "arrays").write_bytes(b"half")
    directory.remove_orphans(1)
    assert directory.location.names() == []


def test_data_with_a_damaged_manifest_are_kept(
    directory: CheckpointDirectory,
) -> None:
    add(directory, directory.begin(1), 1)
    (directory.location / "1" / NAME).write_bytes(b"{")
    before = files(directory.location)
    directory.remove_orphans(99)
    assert files(directory.location) == before


def test_prune_keeps_what_the_policy_keeps(directory: CheckpointDirectory) -> None:
    attempt = directory.begin(1)
    add(directory, attempt, 1, 2, 3)
    directory.prune(None, attempt)
    assert directory.steps() == [1, 2, 3]
    directory.prune(LatestN(2), attempt)
    assert directory.steps() == [2, 3]
    directory.prune(KeepNothing(), attempt)
    assert directory.steps() == [3]  # Whatever a policy says.
    assert not [path for path in files(directory.location) if path.startswith("/1/")]


def test_a_failed_removal_is_reported_and_retried(
    directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = directory.begin(1)
    add(directory, attempt, 1, 2)
    for step in (1, 2):
        attempt.committed(Commit(step, 1))

    def fail(location: Location) -> None:
        raise PermissionError(13, "Permission denied", str(location))

    with monkeypatch.context() as patch:
        patch.setattr(Location, "remove", fail)
        with pytest.warns(UserWarning, match="Could not remove .*1: "):
            directory.prune(LatestN(1), attempt)
    assert [c.step for c in attempt.entry.commits] == [1, 2]
    directory.prune(LatestN(1), attempt)
    assert directory.steps() == [2]
    assert [c.step for c in attempt.entry.commits] == [2]


def test_delete_leaves_nothing(directory: CheckpointDirectory) -> None:
    add(directory, directory.begin(1), 1)
    directory.lock()
    directory.delete()
    assert files(directory.location) == []
    directory.lock()
    assert (directory.location / ".lock").exists() == (directory.location.local is not None)
    directory.unlock()


@contextmanager
def locked(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    code = (
        "import sys, time; from distrib.storage.locate import locate;"
        "from distrib.checkpoint.directory import CheckpointDirectory;"
        "CheckpointDirectory(locate(sys.argv[1], 'd')).lock(); print('locked', flush=True);"
        "time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_another_process_is_locked_out_until_the_first_is_dead(tmp_path: Path) -> None:
    directory = CheckpointDirectory(locate(tmp_path, "directory"))
    with locked(tmp_path) as holder:
        for timeout in (0.0, 0.1):
            with pytest.raises(ConfigurationError, match=f"pid {holder.pid}"):
                directory.lock(timeout)
    directory.lock()
    directory.lock()
    directory.unlock()


def test_the_lock_waits_for_a_process_that_is_about_to_exit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = CheckpointDirectory(locate(tmp_path, "directory"))
    with locked(tmp_path) as holder:
        threading.Timer(0.2, holder.kill).start()
        directory.lock(timeout=60)
    assert f"process {holder.pid} still holds" in capfd.readouterr().err
    directory.unlock()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_directory_for_a_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="cannot write to"):
        CheckpointDirectory(locate(tmp_path / "run", "directory")).lock()


def test_another_fit_of_this_process_is_locked_out(tmp_path: Path) -> None:
    one, other = (CheckpointDirectory(locate(tmp_path, "directory")) for _ in range(2))
    one.lock()
    with pytest.raises(ConfigurationError, match="Another `fit` of this process"):
        other.lock()
    other.unlock()
    one.unlock()
    other.lock()
    other.unlock()


def test_a_damaged_checkpoint_of_the_same_step_is_quarantined_not_replaced(
    directory: CheckpointDirectory,
) -> None:
    add(directory, directory.begin(1), 1, 2)
    (directory.location / "2" / NAME).write_bytes(b"{")
    with pytest.warns(UserWarning, match=r"Checkpoint 2 was damaged: .*not a readable manifest"):
        commit.publish(directory.location, draft(directory, directory.begin(1), 2, "new"))
    assert directory.load_newest(load) == "new"
    assert len(commit.quarantined(directory.location)) == 1
    directory.remove_orphans(99)
    place = directory.location
    contents = {place.filesystem.cat_file(path) for path in place.filesystem.find(place.path)}
    assert b"state 2" in contents
