import json
from typing import Any

import pytest

from distrib.checkpoint import commit
from distrib.checkpoint.manifest import NAME


def test_rm(run: Any, checkpoints: Any) -> None:
    run.save(1, 2, 3)
    result = checkpoints("rm", run.url, 2, 1)
    assert result.code == 0
    assert [line.split(" (")[0] for line in result.out.splitlines()] == [
        f"removed {run.location}/1",
        f"removed {run.location}/2",
    ]
    assert run.directory.steps() == [3]
    assert not [path for path in run.contents() if "/1/" in path or "/2/" in path]
    run.save(4)
    assert run.directory.steps() == [3, 4]


def test_rm_of_the_newest_needs_force(run: Any, checkpoints: Any) -> None:
    run.save(1, 2)
    run.save_late(9)
    before = run.contents()
    result = checkpoints("rm", run.url, 1, 2)
    assert result.code == 78
    assert f"Nothing was removed: {run.location}/2 is the newest" in result.err
    assert run.contents() == before
    assert checkpoints("rm", run.url, 9).code == 0
    assert checkpoints("rm", run.url, 1, 2, "--force").code == 0
    assert run.directory.steps() == []


def test_rm_of_a_step_that_is_not_there(run: Any, checkpoints: Any) -> None:
    run.save(1, 2)
    result = checkpoints("rm", run.url, 1, 9)
    assert result.code == 78
    assert "has no step 9; it has 1, 2." in result.err
    assert run.directory.steps() == [1, 2]


def test_rm_of_one_whose_manifest_is_damaged(run: Any, checkpoints: Any) -> None:
    run.save(1, 2)
    (run.location / "1" / NAME).write_bytes(b"{")
    assert checkpoints("rm", run.url, 1).code == 0
    assert not [path for path in run.contents() if "/1/" in path]


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
    assert checkpoints("prune", run.url, *keep).out == "Nothing is to be removed.\n"


def test_prune_keeps_the_largest_if_asked(run: Any, checkpoints: Any) -> None:
    for step, acc in ((1, 0.5), (2, 0.75), (3, 0.25), (4, 0.5)):
        run.save(step, metrics={"acc": acc})
    assert checkpoints("prune", run.url, "--keep-last", 1, "--keep-best", "acc:max").code == 0
    assert run.directory.steps() == [2, 4]


def test_prune_looks_only_at_those_that_count(run: Any, checkpoints: Any) -> None:
    run.save(1, 2, 3, 4)
    (run.location / "1" / NAME).write_bytes(b"{")
    aside = commit.quarantine(run.location, 2, "rotten")
    run.save_late(9)
    assert checkpoints("prune", run.url, "--keep-last", 1).code == 0
    assert run.directory.steps() == [4]
    assert (run.location / "1" / NAME).exists()
    assert commit.quarantined(run.location) == [aside]
    assert (run.location / "9" / NAME).exists()


def test_prune_by_a_metric_that_no_checkpoint_has(run: Any, checkpoints: Any) -> None:
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
def test_prune_that_is_wrongly_told(arguments: list[str], local_run: Any, checkpoints: Any) -> None:
    local_run.save(1, 2)
    assert checkpoints("prune", local_run.url, *arguments).code == 64
    assert local_run.directory.steps() == [1, 2]


def test_a_run_that_is_alive_is_left_alone(local_run: Any, in_use: Any, checkpoints: Any) -> None:
    local_run.save(1, 2)
    prune = ["prune", local_run.url, "--keep-last", 1]
    with in_use(local_run) as pid:
        for command in (["rm", local_run.url, 1], prune):
            result = checkpoints(*command)
            assert result.code == 78
            assert f"Nothing was removed. Another process (pid {pid}) is training" in result.err
        assert checkpoints(*prune, "--dry-run").out.startswith("would remove")
    assert local_run.directory.steps() == [1, 2]
    assert checkpoints(*prune).code == 0
    assert local_run.directory.steps() == [2]
