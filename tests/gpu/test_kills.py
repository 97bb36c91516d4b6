"""SIGKILL of deterministic jobs on GPUs: equal to undisturbed ones, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import JOB, kill_and_finish, launch, result, undisturbed

from distrib.errors import EXIT_LOST_PEER

DETERMINISTIC = "--deterministic"
MOMENTS = ["in_step:5", "save_arrays:2", "validation:0", "restore_weights:1", "epoch_end:2"]
# Ranks to kill, and where.
OF_RANKS = [(1, "in_step:5"), (0, "save_uncommitted:1"), (1, "validation:1"), (0, "epoch_end:2")]


@pytest.mark.gpu
def test_on_one_gpu(tmp_path: Path) -> None:
    killed = kill_and_finish(tmp_path / "run", MOMENTS, DETERMINISTIC)
    assert killed == undisturbed(DETERMINISTIC)


@pytest.mark.gpu(2)
def test_mirrored_on_two_gpus(tmp_path: Path) -> None:
    arguments = "--backend", "mirrored", DETERMINISTIC
    killed = kill_and_finish(tmp_path / "run", MOMENTS[:3], *arguments)
    assert killed == undisturbed(*arguments)


@pytest.mark.gpu(2)
def test_two_ranks(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for rank, kill in OF_RANKS:
        options = "--kill-rank", str(rank), "--kill", kill
        done = launch(2, JOB, "--run", str(run), DETERMINISTIC, *options)
        assert done.returncode == EXIT_LOST_PEER, f"{kill} did not strike:\n{done.stderr[-4000:]}"
    done = launch(2, JOB, "--run", str(run), DETERMINISTIC)
    assert done.returncode == 0, done.stderr[-4000:]
    assert result(run) == undisturbed(DETERMINISTIC, ranks=2)
