"""Jobs that are restarted automatically: preemption, giving up without progress, and resuming after
a fix."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import JOB, KILLED, environment, finish, forked, start, undisturbed

from distrib.checkpoint import attempts
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.environment import ATTEMPTS_VARIABLE, GRACE_VARIABLE, Supervision
from distrib.errors import EXIT_NO_PROGRESS, EXIT_PREEMPTED
from distrib.storage.locate import locate

SHORT = ["--epochs", "2"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop after step 16."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    assert start(run, *SHORT, "--kill=signal:16").returncode == EXIT_PREEMPTED
    return run


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def directory(run: Path) -> CheckpointDirectory:
    return CheckpointDirectory(locate(run, "directory"))


def newest(run: Path) -> attempts.Entry:
    entry = attempts.newest(directory(run).location)
    assert entry is not None
    return entry


@pytest.mark.slow
def test_a_bug_ends_a_job_after_its_attempts_and_a_fix_resumes_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "2")
    broken = [*SHORT, "--kill=bug:17"]
    for _ in range(2):
        done = start(run, *broken)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "ValueError: a bug in step 17" in done.stderr
        assert (newest(run).end, newest(run).error) == ("failed", "ValueError: a bug in step 17")
    done = start(run, *broken)
    assert done.returncode == EXIT_NO_PROGRESS
    assert "given up: 2 attempts in a row have made no progress beyond 16" in done.stderr
    assert done.stderr.count("ended: ValueError: a bug in step 17") == 2
    assert "Traceback" not in done.stderr
    assert newest(run).end == "given up"
    assert finish(run, *SHORT) == undisturbed(*SHORT)


def supervised(
    run: Path, *options: str, size: int = 1, attempts: int = 2, variables: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the job with `distrib run`, with variables that only its ranks have."""
    distrib = str(Path(sys.executable).with_name("distrib"))
    command = [distrib, "run", "-np", str(size), "--attempts", str(attempts), "env", *variables]
    command += forked(JOB, "--run", str(run), *SHORT, *options)
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=400, check=False
    )


@pytest.mark.slow
def test_supervisor_and_ledger_count_attempts_alike(run: Path) -> None:
    done = supervised(run, "--kill=bug:18")
    assert done.returncode == EXIT_NO_PROGRESS
    assert done.stderr.count("Traceback") == 2
    assert (newest(run).stalled, newest(run).seen) == (1, 1)
    # The supervisor gave up, and a person has fixed the cause.
    done = supervised(run)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_all_ranks_give_up_together(run: Path) -> None:
    for _ in range(2):
        directory(run).begin(2, 16, Supervision(attempts=2))
    done = supervised(run, size=2)
    assert done.returncode == EXIT_NO_PROGRESS, done.stderr
    assert done.stderr.count("given up: 2 attempts in a row have made no progress beyond 16") == 2


@pytest.mark.slow
def test_a_save_that_cannot_fit_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv(GRACE_VARIABLE, "0.001")
    done = start(run, *SHORT, "--kill=signal:16")
    assert done.returncode == EXIT_PREEMPTED
    assert done.stderr.count("a request to stop leaves 0.001 s (DISTRIB_GRACE_SECONDS)") == 1
    saved = directory(run).steps()[-1]
    assert 9 <= saved <= 15
    assert f"The run goes on from checkpoint {run}/checkpoints/{saved}, and" in done.stderr
    assert f"({16 - saved} of 16 steps)" in done.stderr
    assert newest(run).end == "preempted"

    # A resumed run has not saved yet, but the ledger holds the duration of a save.
    done = start(run, *SHORT, f"--kill=before_step:{saved}")
    assert done.returncode == KILLED
    assert "a request to stop leaves 0.001 s" in done.stderr
    assert finish(run, *SHORT) == undisturbed(*SHORT)


@pytest.mark.slow
def test_ranks_agree_that_a_save_does_not_fit(run: Path) -> None:
    """One rank gets the request; another one knows how long a save takes."""
    done = supervised(
        *(run, "--kill=signal:17", "--kill-rank=1"),
        size=2,
        attempts=0,
        variables=[f"{GRACE_VARIABLE}=0.001"],
    )
    assert done.returncode == EXIT_PREEMPTED, done.stderr
    assert "longer than the time that is left" in done.stderr
    assert directory(run).steps()[-1] in (16, 18)
