import json
from typing import Any

from distrib.checkpoint import commit
from distrib.checkpoint.manifest import NAME


def test_ls(run: Any, checkpoints: Any) -> None:
    run.save(7, 250, metrics={"loss": 0.25})
    run.save(300, metrics={"loss": 0.125, "val_loss": 0.5})
    result = checkpoints("ls", run.url)
    assert result.code == 0
    header, *rows = result.table
    assert header == ["step", "epoch", "batch", "age", "size", "metric", "attempt", "state"]
    assert [row[:3] for row in rows] == [["7", "0", "7"], ["250", "2", "50"], ["300", "3", "0"]]
    assert [row[-4:] for row in rows[:2]] == [["loss", "0.25", "1", "committed"]] * 2
    assert rows[2][-5:] == ["val_loss", "0.5", "2", "committed,", "newest"]
    assert rows[0][4] == "s"
    assert rows[0][6] == "KiB"


def test_ls_shows_a_metric_by_name(run: Any, checkpoints: Any) -> None:
    run.save(7, metrics={"loss": 0.25, "acc": 0.75})
    run.save(8, metrics={"loss": 0.25})
    header, seven, eight = checkpoints("ls", run.url, "--metric", "acc").table
    assert header[5] == "acc"
    assert "0.75" in seven
    assert eight[7:] == ["2", "committed,", "newest"]


def test_ls_shows_the_state_of_each(run: Any, checkpoints: Any) -> None:
    run.save(1, 2, 3)
    run.save_superseded(9)
    (run.location / "3" / NAME).write_bytes(b"{")
    quarantined = commit.quarantine(run.location, 2, "rotten")
    result = checkpoints("ls", run.url)
    assert result.code == 0
    states = {row[0]: " ".join(row[1:]) for row in result.table[1:]}
    assert states["1"].endswith("committed, newest")
    assert states["2"] == f"quarantined: {quarantined}"
    assert states["3"].startswith(f"damaged manifest: {run.location}/3/{NAME} is not a readable")
    assert "superseded: by a superseded attempt" in states["9"]
    rows = json.loads(checkpoints("ls", "--json", run.url).out)
    assert [(row["step"], row["state"], row["newest"]) for row in rows] == [
        (1, "committed", True),
        (2, "quarantined", False),
        (3, "damaged manifest", False),
        (9, "superseded", False),
    ]
    assert rows[0]["attempt"] == 1
    assert rows[0]["bytes"] > 0


def test_a_superseded_one_is_the_newest_if_there_is_no_other(run: Any, checkpoints: Any) -> None:
    run.save_superseded(9)
    assert "superseded, newest" in checkpoints("ls", run.url).out


def test_reading_commands_change_nothing_in_a_live_run(
    local_run: Any, training_into: Any, checkpoints: Any
) -> None:
    local_run.save(1, 2)
    assert checkpoints("ls", local_run.url).code == 0
    assert ".lock" not in local_run.location.names()
    with training_into(local_run):
        before = local_run.contents()
        assert checkpoints("ls", local_run.url).code == 0
        assert checkpoints("verify", local_run.url, "--all").code == 0
        assert checkpoints("show", local_run.url).code == 0
        assert local_run.contents() == before
