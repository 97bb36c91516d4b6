import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrib.checkpoint import commit, transfer
from distrib.checkpoint.attempts import Attempt
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.retention import LatestN
from distrib.checkpoint.saver import Content, Saver
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.errors import CheckpointError, SupersededError
from distrib.storage.local_files import fsync
from distrib.storage.locate import locate
from distrib.storage.uploads import uploads


def content(step: int) -> Content:
    return Content(step, 0, step, {"model": {"w": np.full(3, step, np.float32)}}, {"step": step})


def wait_until_idle(saver: Saver) -> None:
    """As the step loop does, which asks once a step."""
    while not saver.idle:
        time.sleep(0.01)


@pytest.fixture(params=["local", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointDirectory]:
    url = str(tmp_path) if request.param == "local" else f"memory://{secrets.token_hex(4)}/run"
    directory = CheckpointDirectory(locate(url, "directory"))
    directory.lock()
    yield directory
    directory.unlock()


@pytest.fixture
def attempt(directory: CheckpointDirectory) -> Attempt:
    return directory.begin(1)


def newest(directory: CheckpointDirectory) -> StoredCheckpoint:
    return directory.checkpoints()[-1]


def test_saves_commits_and_prunes(directory: CheckpointDirectory, attempt: Attempt) -> None:
    saver = Saver(directory, attempt, LatestN(2))
    for step in (1, 2, 3):
        saver.save(content(step))
    saver.close()
    assert directory.steps() == [2, 3]
    loaded = newest(directory).read()
    assert loaded.training == {"step": 3}
    np.testing.assert_array_equal(loaded.arrays["model"]["w"], np.full(3, 3, np.float32))
    assert saver.write_time > 0
    assert [c.step for c in attempt.entry.commits] == [2, 3]


def test_a_save_flushes_every_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []

    def record(path: Path) -> None:
        flushed.append(path)
        fsync(path)

    directory = CheckpointDirectory(locate(tmp_path, "directory"))
    saver = Saver(directory, directory.begin(1), None)
    for module in (commit, transfer):
        monkeypatch.setattr(module, "fsync", record)
    saver.save(content(1))
    saver.close()
    draft = tmp_path / "checkpoints" / ".1.attempt-1"
    assert sorted(flushed) == [
        tmp_path / "checkpoints",
        draft,
        draft / "arrays",
        draft / "arrays/d",
        draft / "manifest.json",
        draft / "training",
    ]


def test_saves_run_in_the_background_one_at_a_time(
    directory: CheckpointDirectory, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write = transfer.write

    def slow(*args: Any) -> Any:
        assert go.wait(30)
        return write(*args)

    monkeypatch.setattr(transfer, "write", slow)
    saver = Saver(directory, attempt, None)
    saver.save(content(1))
    assert not saver.idle
    assert directory.steps() == []
    go.set()
    saver.wait()
    assert saver.idle
    saver.close()
    assert directory.steps() == [1]


def test_an_error_reaches_the_step_loop_and_costs_no_checkpoint(
    directory: CheckpointDirectory, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(directory, attempt, LatestN(1))
    saver.save(content(1))
    saver.wait()
    write = transfer.write

    def fail(*args: Any) -> None:
        write(*args)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "write", fail)
        saver.save(content(2))
        with pytest.raises(CheckpointError, match=r"step 2 .*no space.*step 1 is intact"):
            wait_until_idle(saver)
    assert directory.steps() == [1]
    assert not [name for name in directory.location.names() if name.startswith(".2.")]
    saver.save(content(2))
    saver.close()
    assert directory.steps() == [2]


def test_the_next_save_raises_the_error_of_the_last(
    directory: CheckpointDirectory, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    saver = Saver(directory, attempt, None)
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "write", fail)
        saver.save(content(1))
        with pytest.raises(CheckpointError, match="There is none yet"):
            saver.save(content(2))
    saver.close()
    assert directory.steps() == []


def test_an_attempt_is_superseded_while_it_writes(
    directory: CheckpointDirectory, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = transfer.write

    def interrupted(*args: Any) -> Any:
        directory.begin(1)
        return write(*args)

    monkeypatch.setattr(transfer, "write", interrupted)
    saver = Saver(directory, attempt, None)
    saver.save(content(1))
    with pytest.raises(SupersededError):
        saver.wait()
    saver.close()
    assert directory.checkpoints() == []


def test_a_commit_waits_for_the_uploads_of_callbacks(
    directory: CheckpointDirectory, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_at_the_time = []

    class Pending:
        def wait(self) -> None:
            steps_at_the_time.append(directory.steps())

    monkeypatch.setattr(uploads, "pending", Pending)
    saver = Saver(directory, attempt, None)
    saver.save(content(1))
    saver.close()
    assert steps_at_the_time == [[]]


def test_an_older_attempt_does_not_begin_a_save(
    directory: CheckpointDirectory, attempt: Attempt
) -> None:
    saver = Saver(directory, attempt, None)
    directory.begin(1)
    saver.save(content(1))
    with pytest.raises(SupersededError):
        wait_until_idle(saver)
    saver.close()
    assert "1" not in directory.location.names()


def test_an_abandoned_saver_is_closed_first(
    directory: CheckpointDirectory, attempt: Attempt
) -> None:
    abandoned = Saver(directory, attempt, None)
    abandoned.save(content(1))
    saver = Saver(directory, attempt, None)
    assert directory.steps() == [1]
    saver.close()


def test_a_cache_has_the_newest_checkpoint_and_is_verified(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    directory = CheckpointDirectory(locate(f"memory://{secrets.token_hex(4)}", "directory"), cache)
    saver = Saver(directory, directory.begin(1), None)
    for step in (1, 2):
        saver.save(content(step))
    saver.close()
    assert [path.name for path in cache.iterdir()] == ["2.attempt-1"]
    stored = newest(directory)
    copies = {path.name: path for path in cache.rglob("*") if path.is_file()}
    assert len(copies) == len(stored.manifest.files)

    # What is gone from the store is read from the cache, and what is broken there from the store.
    (stored.root / "arrays/d/000000").remove()
    stored.read()
    copies["metadata"].write_bytes(b"{}")
    assert stored.read().training == {"step": 2}
    (stored.root / "training/metadata").remove()
    with pytest.raises(Exception, match="metadata is missing"):
        stored.read()
