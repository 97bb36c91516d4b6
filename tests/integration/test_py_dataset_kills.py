"""A `PyDataset` that shuffles itself, killed anywhere, ends as if nothing had happened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import JOB, kill_and_finish, launch, result, start, undisturbed

from distrib.errors import EXIT_LOST_PEER

pytestmark = pytest.mark.slow

SHORT = ("--data", "py_dataset", "--epochs", "3")
MOMENTS = [
    "after_step:2",
    "in_step:7",
    "validation:0",
    "epoch_begin:1",
    "after_step:17",
    "signal:20",
    "signal_in_validation:1",
    "epoch_end:1",
    "after_step:28",
]
FEW = ["in_step:7", "signal_in_validation:0", "after_step:17"]


@pytest.mark.parametrize(
    ("backend", "kills"),
    [
        ("mirrored", FEW),
        pytest.param("mirrored", MOMENTS, marks=pytest.mark.exhaustive),
        pytest.param("local", MOMENTS, marks=pytest.mark.exhaustive),
    ],
)
def test_one_process_resumes_exactly(backend: str, kills: list[str], tmp_path: Path) -> None:
    how = (*SHORT, "--backend", backend)
    assert kill_and_finish(tmp_path / "run", kills, *how) == undisturbed(*how)


@pytest.mark.exhaustive
def test_processes_build_the_same_batches(tmp_path: Path) -> None:
    how = ("--data", "py_dataset_in_processes", "--epochs", "3")
    assert kill_and_finish(tmp_path / "run", ["after_step:17"], *how) == undisturbed(*SHORT)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_resume_exactly(size: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for rank, kill in [(1, "after_step:4"), (0, "epoch_begin:1"), (1, "after_step:10")]:
        killed = ("--kill-rank", str(rank), "--kill", kill)
        done = launch(size, JOB, "--run", str(run), *SHORT, *killed)
        assert done.returncode == EXIT_LOST_PEER, done.stderr[-4000:]
    done = launch(size, JOB, "--run", str(run), *SHORT)
    assert done.returncode == 0, done.stderr[-4000:]
    calm = undisturbed(*SHORT, ranks=size)
    assert len(set(calm["weights"])) == 1
    assert len(set(map(str, calm["logs"]))) == 1
    assert result(run) == calm


@pytest.mark.exhaustive
def test_another_number_of_ranks_goes_on_after_the_same_batches(tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = (*SHORT, "--epochs", "1", "--save-freq", "1", "--pace", "0.3")
    done = launch(2, JOB, "--run", str(run), *how, "--kill", "after_step:5")
    assert done.returncode == EXIT_LOST_PEER, done.stderr[-4000:]
    done = start(run, *how)
    assert done.returncode == 0, done.stderr[-4000:]
    resumed = re.search(r"checkpoints/(\d+): epoch 1/1, batch (\d+)/11", done.stderr)
    assert resumed, done.stderr[-4000:]
    step, batch = (int(number) for number in resumed.groups())
    assert batch == 2 * step > 0  # In each step each rank took one.
    assert len(result(run)["losses"]) == step + 11 - batch
