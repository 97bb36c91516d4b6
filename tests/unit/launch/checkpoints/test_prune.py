import json
from typing import Any

import pytest

from distrib.checkpoint import commit
from distrib.checkpoint.manifest import NAME


def test_prune(run: Any, checkpoints: Any) -> None:
    for step, loss in ((1, 0.5), (2, 0.125), (3, 0.25), (12, 0.75), (13, 0.75), (14, 0.75)):
        run.save(step, metrics={"loss": loss, "acc": 1 - loss})
    keep = ["--keep-last", 1, "--keep-every", 10, "--keep-best", "loss"]
    before = run.contents()
    planned = checkpoints("prune", run.url, *keep, "--dry-run")
    assert planned.code == 0
    assert [line.split(" (")[0] for line in planned.out.splitlines()] == [
        f"would remove {run.location}/{step}" for step in (1, 3, 13)
    ]
    assert run.contents() == before
    done = checkpoints("prune", run.url, *keep, "--json")
    assert [row["step"] for row in json.loads(done.out)] == [1, 3, 13]
    assert run.directory.steps() == [2, 12, 14]
    assert checkpoints("prune", run.url, *keep).out == "Nothing to remove.\n"


def test_prune_keeps_the_largest_metric(run: Any, checkpoints: Any) -> None:
    for step, acc in ((1, 0.5), (2, 0.75), (3, 0.25), (4, 0.5)):
        run.save(step, metrics={"acc": acc})
    assert checkpoints("prune", run.url, "--keep-last", 1, "--keep-best", "acc:max").code == 0
    assert run.directory.steps() == [2, 4]


def test_prune_leaves_damaged_and_superseded_ones(run: Any, checkpoints: Any) -> None:
    run.save(1, 2, 3, 4)
    (run.location / "1" / NAME).write_bytes(b"{")
    quarantined = commit.quarantine(run.location, 2, "rotten")
    run.save_superseded(9)
    assert checkpoints("prune", run.url, "--keep-last", 1).code == 0
    assert run.directory.steps() == [4]
    assert (run.location / "1" / NAME).exists()
    assert commit.quarantined(run.location) == [quarantined]
    assert (run.location / "9" / NAME).exists()


def test_prune_by_an_unknown_metric(run: Any, checkpoints: Any) -> None:
    run.save(1, 2, metrics={"loss": 0.5})
    result = checkpoints("prune", run.url, "--keep-last", 1, "--keep-best", "los")
    assert result.code == 78
    assert "no checkpoint has the metric 'los' of --keep-best. They have loss." in result.err
    assert run.directory.steps() == [1, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--keep-last", "0"],
        ["--keep-last", "1", "--keep-every", "x"],
        ["--keep-last", "1", "--keep-best", "acc:most"],
        ["--keep-last", "1", "--keep-best", ":max"],
    ],
)
def test_prune_with_wrong_options(arguments: list[str], local_run: Any, checkpoints: Any) -> None:
    local_run.save(1, 2)
    assert checkpoints("prune", local_run.url, *arguments).code == 64
    assert local_run.directory.steps() == [1, 2]
