"""The textbook's script, with what the README adds to it, ends alike after kills, everywhere."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import KILLED, environment, forked, launch

from distrib.errors import EXIT_LOST_PEER

JOB = Path(__file__).with_name("textbook_job.py")
# An epoch has 5 steps.
KILLS = ["after_step:4", "validation:0", "after_step:12", "epoch_end:2"]


def run_job(run: Path, backend: str, ranks: int, *kill: str) -> int:
    arguments = str(run), backend, *kill
    if ranks > 1:
        done = launch(ranks, JOB, *arguments, backend=backend)
    else:
        command = forked(JOB, *arguments)
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
    expected = {0} if not kill else {KILLED, EXIT_LOST_PEER}
    assert done.returncode in expected, done.stderr[-4000:]
    return done.returncode


def result_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def run(backend: str, ranks: int) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("textbook")
        run_job(folder, backend, ranks)
        return result_of(folder)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "ranks"),
    [
        ("local", 1),
        pytest.param("mirrored", 1, marks=pytest.mark.exhaustive),
        pytest.param("horovod", 2, marks=pytest.mark.exhaustive),
        pytest.param("horovod", 3, marks=pytest.mark.exhaustive),
    ],
)
def test_kills_change_nothing(backend: str, ranks: int, undisturbed: Any, tmp_path: Path) -> None:
    kills = KILLS if ranks > 1 else KILLS[::2]
    for i, kill in enumerate(kills):
        run_job(tmp_path, backend, ranks, kill, str(i % ranks))
    run_job(tmp_path, backend, ranks)
    assert result_of(tmp_path) == undisturbed(backend, ranks)
    alone = undisturbed("local", 1)["history"]
    for name, values in undisturbed(backend, ranks)["history"].items():
        np.testing.assert_allclose(values, alone[name], rtol=1e-5, atol=1e-5)
