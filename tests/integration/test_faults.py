"""What can go wrong around a run, tried for real: each ends in a clear error and costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import finish, kill_and_finish, start, undisturbed

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.errors import EXIT_CONFIGURATION, EXIT_NO_LOADABLE_CHECKPOINT, EXIT_PREEMPTED
from distrib.storage.locate import locate

SHORT = ["--epochs", "2"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop after step 16, with the checkpoint before it still there."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    assert start(run, *SHORT, "--kill=signal:16").returncode == EXIT_PREEMPTED
    # On a busy machine a save may still be in progress when the next is due, which is skipped then.
    before, last = CheckpointDirectory(locate(run, "directory")).steps()
    assert before < last == 16
    return run


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def largest_file(run: Path, step: int) -> Path:
    files = (run / "checkpoints" / str(step) / "arrays").rglob("*")
    return max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_checkpoint_is_set_aside_and_the_result_is_the_same(
    damage: Any, run: Path
) -> None:
    damaged = largest_file(run, 16)
    damage(damaged)
    done = start(run, *SHORT)
    assert done.returncode == 0, done.stderr
    assert f"Checkpoint 16 is damaged: {damaged}" in done.stderr
    assert "resuming from" in done.stderr
    assert (run / "checkpoints" / "16.damaged").is_dir()
    assert json.loads((run / "result.json").read_text()) == undisturbed(*SHORT)


@pytest.mark.slow
def test_all_checkpoints_damaged_is_65_and_deletes_nothing(run: Path) -> None:
    steps = CheckpointDirectory(locate(run, "directory")).steps()
    for step in steps:
        flip_a_bit(largest_file(run, step))
    done = start(run, *SHORT)
    assert done.returncode == EXIT_NO_LOADABLE_CHECKPOINT
    assert "None of the checkpoints" in done.stderr
    aside = {path.name for path in (run / "checkpoints").glob("*.damaged")}
    assert aside == {f"{step}.damaged" for step in steps}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "recurrent"], "structure: checkpoint has"),
        (["--model", "lr_schedule"], "optimizer: checkpoint has Adam, this run has SGD"),
        (["--batch-size", "8"], "batch_size: checkpoint has 16, this run has 8"),
        (["--samples", "180"], "num_examples: checkpoint has 173, this run has 180"),
    ],
)
def test_another_model_or_dataset_is_78_and_changes_nothing(
    change: list[str], message: str, run: Path
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = start(run, *SHORT, *change)
    assert done.returncode == EXIT_CONFIGURATION
    assert message in done.stderr
    lock = run / "checkpoints" / ".lock"
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {**after, lock: b""} == {**before, lock: b""}


@pytest.mark.slow
def test_a_checkpoint_of_the_other_kind_of_cluster_goes_on(run: Path) -> None:
    """One replica's checkpoint restored on two: the same data order, and all epochs are there."""
    result = finish(run, *SHORT, "--backend", "mirrored")
    assert result["epochs"] == [0, 1]
    assert len(result["losses"]) == 22
    assert result["csv"].count("\n") == 3


@pytest.mark.slow
def test_two_processes_do_not_share_a_directory(run: Path) -> None:
    directory = CheckpointDirectory(locate(run, "directory"))
    directory.lock()
    try:
        done = start(run, *SHORT)
    finally:
        directory.unlock()
    assert done.returncode == EXIT_CONFIGURATION
    assert f"Another process (pid {os.getpid()}) is training" in done.stderr


@pytest.mark.slow
def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = start(tmp_path / "file" / "run", *SHORT)
    assert done.returncode == EXIT_CONFIGURATION
    assert "Not a directory" in done.stderr


@pytest.mark.slow
def test_signals_at_many_moments_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    signals = ["signal:1", "interrupt:11", "signal_in_validation:0", "signal:13", "signal:22"]
    assert kill_and_finish(tmp_path / "run", signals, *SHORT) == undisturbed(*SHORT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small tmpfs; that takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**20 - 8192))
    done = start(small_disk / "run", *SHORT)
    assert done.returncode == 1
    assert "Could not write the checkpoint of step 0" in done.stderr
    assert "No space left" in done.stderr or "ENOSPC" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_no_checkpoint(small_disk: Path) -> None:
    run = small_disk / "run"
    # Early in an epoch, so that the failed save is reported before a plot fails as well.
    assert start(run, *SHORT, "--kill=signal:1").returncode == EXIT_PREEMPTED
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(max(free - 40_000, 0)))

    done = start(run, *SHORT)
    assert done.returncode == 1, done.stderr
    assert "Could not write the checkpoint of step" in done.stderr
    assert "is intact; free space" in done.stderr

    (small_disk / "filler").unlink()
    assert finish(run, *SHORT) == undisturbed(*SHORT)
