"""What the launcher says when an attempt does not find what the attempt before has saved."""

import json
from pathlib import Path

import pytest

from distrib.launch.cli import main
from distrib.launch.run.run_directories import RunDirectories

# A rank without TensorFlow that trains, and dies as often as `fits` says.
RANK = """
import json, os, sys
from distrib.heartbeat import TRAINING, heartbeat
fits, log = json.loads(sys.argv[1]), sys.argv[2]
attempt = sum(1 for _ in open(log)) if os.path.exists(log) else 0
print(os.environ["DISTRIB_WRITTEN_STORES"], file=open(log, "a"))
for directory, resumed, committed, finished in fits[attempt]:
    heartbeat.begin_run(directory, resumed, found=bool(resumed))
    heartbeat.committed(committed)
    if not finished:
        if attempt + 1 < len(fits):
            os.kill(os.getpid(), 9)
        heartbeat.enter(TRAINING)
        import time
        time.sleep(20)
    heartbeat.end_run()
"""
Fit = tuple[str, int, int, bool]
Capture = pytest.CaptureFixture[str]


def beat(runs: RunDirectories, *fits: Fit, host: str = "h0") -> str:
    """Report an attempt's `fit`s; return what was said."""
    runs.begin_attempt()
    said = ""
    for directory, resumed, committed, finished in fits:
        facts = {"run": directory, "found": resumed > 0, "committed": resumed, "finished": False}
        said += runs.record(host, facts)
        said += runs.record(host, {**facts, "committed": committed, "finished": finished})
    return said


def test_the_same_directory() -> None:
    runs = RunDirectories()
    for step in (0, 5, 5, 8):
        assert not beat(runs, ("/runs/1", step, step + 2, False))
    assert not runs.refusal


def test_a_checkpoint_of_the_first_step_is_not_nothing() -> None:
    """It is used if all later ones are damaged, which the rank has reported."""
    runs = RunDirectories()
    beat(runs, ("/runs/1", 0, 7, False))
    runs.begin_attempt()
    facts = {"run": "/runs/1", "found": True, "committed": 0, "finished": False}
    assert not runs.record("h0", facts)
    assert not runs.refusal


def test_nothing_is_missed_that_was_not_saved() -> None:
    runs = RunDirectories()
    assert not beat(runs, ("/runs/1", 0, 0, False))
    assert not beat(runs)
    assert not beat(runs, ("/runs/2", 0, 5, False))
    assert not runs.refusal


def test_another_directory_in_each_attempt() -> None:
    runs = RunDirectories()
    beat(runs, ("/runs/10:00", 0, 7, False))
    beat(runs)  # This attempt dies before `fit`.
    assert not beat(runs, ("/runs/10:05", 0, 0, False))
    assert runs.refusal.startswith(
        "attempt 3 has found nothing in /runs/10:05 on h0, but attempt 1 has saved step 7 in "
        "/runs/10:00 on h0. The job ends"
    )
    assert "with /runs/10:00 this training continues. (exit code 78)" in runs.refusal


def test_a_disk_that_only_one_host_has() -> None:
    runs = RunDirectories()
    beat(runs, ("/runs/1", 0, 7, False))
    beat(runs, ("/runs/1", 0, 0, False), host="h1")
    assert "nothing in /runs/1 on h1, but attempt 1 has saved step 7 in /runs/1 on h0" in (
        runs.refusal
    )
    assert "Give BackupAndRestore a directory that all hosts share." in runs.refusal


def test_a_store_is_the_same_from_each_host() -> None:
    runs = RunDirectories()
    beat(runs, ("s3://b/1", 0, 7, False))
    assert not beat(runs, ("s3://b/1", 7, 9, False), host="h1")
    beat(runs, ("s3://b/2", 0, 0, False), host="h1")
    assert "but attempt 2 has saved step 9 in s3://b/1. The job ends" in runs.refusal
    assert runs.stores == {"s3://b"}


@pytest.mark.parametrize(
    "second",
    [
        [("/f/0", 9, 9, True), ("/f/1", 4, 9, True), ("/f/2", 0, 3, False)],
        [("/f/1", 4, 9, True), ("/f/2", 0, 3, False)],  # The script skips what is finished.
        [("/f/0", 0, 9, True), ("/f/1", 4, 9, True)],  # `delete_checkpoint=True`.
    ],
)
def test_folds(second: list[Fit]) -> None:
    runs = RunDirectories()
    beat(runs, ("/f/0", 0, 9, True), ("/f/1", 0, 4, False))
    assert not beat(runs, *second)
    assert not runs.refusal


def test_a_script_that_ended_between_two_folds() -> None:
    runs = RunDirectories()
    beat(runs, ("/f/0", 0, 9, True))
    assert not beat(runs, ("/f/1", 0, 4, False))
    assert not runs.refusal


def test_a_fold_in_another_directory_is_told_of() -> None:
    """It is not the whole training that is repeated."""
    runs = RunDirectories()
    beat(runs, ("/f/0", 0, 9, True), ("/f/10:00", 0, 4, False))
    said = beat(runs, ("/f/0", 9, 9, True), ("/f/10:05", 0, 3, False))
    assert "nothing in /f/10:05 on h0, but attempt 1 has saved step 4 in /f/10:00 on h0, so" in said
    assert not runs.refusal


def run(tmp_path: Path, *attempts: list[Fit]) -> tuple[int, list[str]]:
    (tmp_path / "rank.py").write_text(RANK)
    log = tmp_path / "log"
    words = [str(tmp_path / "rank.py"), json.dumps(attempts), str(log)]
    code = main(["run", "-np", "1", "--backend", "multiworker", *words])
    return code, log.read_text().splitlines()


def test_the_job_ends_at_once(tmp_path: Path, capfd: Capture) -> None:
    code, stores = run(tmp_path, [("s3://b/1", 0, 7, False)], [("s3://b/2", 0, 0, False)])
    assert (code, stores) == (78, ["", "s3://b"])
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("distrib: attempt 2 has found nothing in s3://b/2, but attempt 1 has ")


def test_the_job_goes_on_where_it_was(tmp_path: Path) -> None:
    code, stores = run(tmp_path, [("s3://b/1", 0, 7, False)], [("s3://b/1", 7, 9, True)])
    assert (code, stores) == (0, ["", "s3://b"])
