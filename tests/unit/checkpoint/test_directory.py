import os
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.checkpoint import manifest
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.errors import ConfigurationError, NoLoadableCheckpointError


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path)


def add(directory: CheckpointDirectory, *steps: int) -> None:
    for step in steps:
        path = directory.step_path(step)
        path.mkdir(parents=True)
        (path / "data").write_text(f"state {step}")
        manifest.commit(path, step, 0, step)


def load(path: Path) -> str:
    return (path / "data").read_text()


def test_nothing_there(directory: CheckpointDirectory) -> None:
    assert directory.steps() == []
    assert directory.load_newest(load) is None


def test_newest_by_number_not_by_name(directory: CheckpointDirectory) -> None:
    add(directory, 9, 100, 20)
    assert directory.steps() == [9, 20, 100]
    assert directory.load_newest(load) == "state 100"


def test_uncommitted_folders_do_not_count_and_are_collected(
    directory: CheckpointDirectory,
) -> None:
    add(directory, 1)
    (directory.path / "2").mkdir()
    (directory.path / "2" / "data").write_text("half")
    (directory.path / "3.orbax-checkpoint-tmp-17").mkdir()
    (directory.path / "notes").mkdir()
    assert directory.load_newest(load) == "state 1"
    directory.collect_leftovers()
    assert sorted(path.name for path in directory.path.iterdir()) == ["1", "notes"]


def test_damaged_ones_are_set_aside_and_the_one_before_is_used(
    directory: CheckpointDirectory,
) -> None:
    add(directory, 1, 2, 3)
    (directory.step_path(3) / "data").write_text("state 4")
    (directory.step_path(2) / manifest.NAME).write_text("{")
    with pytest.warns(UserWarning, match=r"is damaged: .*(data has CRC32C|not a readable)") as got:
        assert directory.load_newest(load) == "state 1"
    assert len(got) == 2
    assert (directory.path / "3.damaged" / "data").read_text() == "state 4"
    assert directory.steps() == [1]
    directory.collect_leftovers()
    assert (directory.path / "2.damaged").is_dir()


def test_the_same_step_damaged_twice_keeps_both(directory: CheckpointDirectory) -> None:
    add(directory, 1)
    for content in ("first", "second"):
        add(directory, 2)
        (directory.step_path(2) / "data").write_text(content)
        with pytest.warns(UserWarning, match="damaged"):
            directory.load_newest(load)
    assert (directory.path / "2.damaged" / "data").read_text() == "first"
    assert (directory.path / "2.damaged-2" / "data").read_text() == "second"


def test_all_damaged_is_an_error_now_and_at_the_next_start(
    directory: CheckpointDirectory,
) -> None:
    add(directory, 1)
    (directory.step_path(1) / "data").unlink()
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(NoLoadableCheckpointError, match="None of the checkpoints"),
    ):
        directory.load_newest(load)
    with pytest.raises(NoLoadableCheckpointError):
        directory.load_newest(load)


def test_prune_keeps_the_newest(directory: CheckpointDirectory) -> None:
    add(directory, 1, 2, 3)
    directory.prune(None)
    assert directory.steps() == [1, 2, 3]
    directory.prune(2)
    assert directory.steps() == [2, 3]


def test_a_deletion_that_fails_is_reported_and_tried_again(
    directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(directory, 1, 2)

    def fail(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("distrib.checkpoint.directory.remove_folder", fail)
        with pytest.warns(UserWarning, match="Could not remove the old checkpoint .*/1"):
            directory.prune(1)
    directory.prune(1)
    assert directory.steps() == [2]


def test_another_process_is_kept_out_until_the_first_is_dead(
    directory: CheckpointDirectory, tmp_path: Path
) -> None:
    code = (
        "import sys, time; from pathlib import Path;"
        "from distrib.checkpoint.directory import CheckpointDirectory;"
        "CheckpointDirectory(Path(sys.argv[1])).lock(); print('locked', flush=True);"
        "time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ConfigurationError, match=f"pid {holder.pid}"):
            directory.lock()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    directory.lock()
    directory.lock()
    directory.unlock()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_directory_for_a_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="cannot write to"):
        CheckpointDirectory(tmp_path / "run").lock()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot write to .*Not a directory"):
        CheckpointDirectory(tmp_path / "run").lock()
