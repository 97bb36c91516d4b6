"""Every row of the table in `docs/data.md`, killed at several moments, keeps what it promises.

Rows that promise the very step must end with the weights, optimizer state and history of an
undisturbed run, bit for bit. Sources of the same examples are compared with the same undisturbed
run. An epoch has 6 steps; a checkpoint is due every 2 steps.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from data_recipes import ALL, RECIPES, RESUMED_IN_FIRST_ORDER, TABLE
from harness import KILLED, environment, forked, launch

from distrib.errors import EXIT_LOST_PEER

JOB = Path(__file__).with_name("data_job.py")
MOMENTS = ["middle:0", "validation:0", "epoch_begin:1", "middle:1"]
ALL_MOMENTS = [
    "middle:0",
    "validation:0",
    "epoch_end:0",
    "epoch_begin:1",
    "middle:1",
    "save_committed:1",
    "train_end:0",
]


def run_job(*arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    if ranks > 1:
        return launch(ranks, JOB, *arguments)
    command = forked(JOB, *arguments)
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    done = run_job("--write", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def result_of(
    run: Path, files: Path, data: str, kills: list[str], *options: str, ranks: int = 1
) -> dict[str, Any]:
    run.mkdir()
    arguments = ["--run", str(run), "--files", str(files), "--data", data, *options]
    for kill in kills:
        done = run_job(*arguments, "--kill", kill, ranks=ranks)
        expected = KILLED if ranks == 1 else EXIT_LOST_PEER
        assert done.returncode == expected, f"{kill} did not strike:\n{done.stderr[-4000:]}"
    done = run_job(*arguments, ranks=ranks)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads((run / "result.json").read_text()))


@pytest.fixture(scope="session")
def undisturbed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the result of an undisturbed run, made once for data and options."""

    @functools.cache
    def run(like: str, *options: str, ranks: int = 1) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        return result_of(folder, files, like, [], *options, ranks=ranks)

    def result(data: str, *options: str, ranks: int = 1) -> dict[str, Any]:
        return run(ALL[data].like or data, *options, ranks=ranks)

    return result


# Each row one moment in turn: a job costs a second. `make exhaustive` tries the other moments, and
# the rows that vary another one: in how the same examples are stored, or fetched.
VARIED = {
    "array_record",
    "fit_arrays",
    "generator_epoch",
    "memmap",
    "parquet",
    "pipeline_epoch",
    "py_dataset_workers",
    "random_access",
    "tar",
    "validation_shuffled_twice",
    "workers",
}
# Where the state is another one than at the beginning only after an epoch or a validation.
MOMENT = {
    "py_dataset_shuffled": "middle:1",
    "validation": "validation:1",
    "validation_shuffled_twice": "validation:1",
}
ONE_EACH = [
    pytest.param(
        data,
        MOMENT.get(data, MOMENTS[i % len(MOMENTS)]),
        marks=[pytest.mark.exhaustive] if data in VARIED else [],
    )
    for i, data in enumerate(RECIPES)
]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "moment"), ONE_EACH)
def test_killed(data: str, moment: str, files: Path, undisturbed: Any, tmp_path: Path) -> None:
    killed = result_of(tmp_path / "run", files, data, [moment])
    assert killed == undisturbed(data)


@pytest.mark.slow
@pytest.mark.parametrize("data", RESUMED_IN_FIRST_ORDER)
def test_resumed_at_the_epoch(data: str, files: Path, undisturbed: Any, tmp_path: Path) -> None:
    killed = result_of(tmp_path / "run", files, data, ["middle_after_save:1"])
    assert killed == undisturbed(data) != undisturbed("pipeline_replay")


def test_every_row_of_the_table_is_tried() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "data.md").read_text().splitlines()
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[4:])
    for line in table:
        row = re.sub(r"\[|\]\(#.*?\)", "", line.split("|")[1]).strip()
        matching = [begin for begin in TABLE if row.startswith(begin)]
        assert matching, f"no recipe for the row: {row}"
    assert set(ALL) >= {data for recipes in TABLE.values() for data in recipes}


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["local", "mirrored"])
@pytest.mark.parametrize("data", RECIPES)
def test_killed_again_and_again(
    data: str, backend: str, files: Path, undisturbed: Any, tmp_path: Path
) -> None:
    options = "--backend", backend
    killed = result_of(tmp_path / "run", files, data, ALL_MOMENTS, *options)
    assert killed == undisturbed(data, *options)


@pytest.mark.exhaustive
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("data", [data for data in RECIPES if RECIPES[data].ranks])
def test_a_killed_rank(
    data: str, ranks: int, files: Path, undisturbed: Any, tmp_path: Path
) -> None:
    kills = ["middle:0", "validation:0", "middle:1"]
    killed = result_of(tmp_path / "run", files, data, kills, "--kill-rank=1", ranks=ranks)
    assert killed == undisturbed(data, ranks=ranks)
