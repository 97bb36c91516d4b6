"""SIGKILL at every kind of moment: the run must end as if nothing had happened, bit for bit.

Each cell kills one run several times in a row, at moments of one kind, and compares its final
weights, optimizer state, `History`, batch losses and CSV with an undisturbed run's. An epoch has 11
steps (the last batch is smaller, and odd, so two replicas share it unevenly); a checkpoint is due
every 3 steps.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import kill_and_finish, undisturbed

MOMENTS = {
    "between steps": ["before_step:2", "after_step:7", "after_step:12", "before_step:33"],
    "in a step": ["in_step:1", "in_step:10", "in_step:21", "in_step:35"],
    "while saving": [
        "save_arrays:2",
        "save_uncommitted:3",
        "save_manifest:2",
        "save_committed:3",
        "save_prune:1",
        "save_uncommitted:1",
    ],
    "in validation": ["validation:0", "validation:1", "validation:1", "validation:3"],
    "at the end of an epoch": [
        "epoch_end:0+epoch_end:0",
        "epoch_begin:1",
        "epoch_end:2",
        "epoch_end:3",
        "train_end:0",
    ],
    "while restoring": [
        "after_step:8",
        "restore_read:1",
        "restore_weights:1",
        "restore_callbacks:1",
        "signal:29",
        "restore_callbacks:2",
    ],
}


@pytest.fixture(
    scope="module", params=["local", pytest.param("mirrored", marks=pytest.mark.exhaustive)]
)
def arguments(request: pytest.FixtureRequest) -> list[str]:
    return ["--backend", request.param]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOMENTS)
def test_every_moment(kind: str, arguments: list[str], tmp_path: Path) -> None:
    killed = kill_and_finish(tmp_path / "run", MOMENTS[kind], *arguments)
    assert killed == undisturbed(*arguments)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_arrays_straight_into_fit(arguments: list[str], tmp_path: Path) -> None:
    killed = kill_and_finish(tmp_path / "run", ["in_step:15"], *arguments, "--arrays")
    assert killed == undisturbed(*arguments)  # Trained on a `cluster.dataset`.


def test_kills_enough() -> None:
    kills = [kill for moments in MOMENTS.values() for kill in moments if "signal" not in kill]
    assert 2 * len(kills) >= 40
