import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distrib.checkpoint import commit
from distrib.checkpoint.manifest import NAME
from distrib.launch.checkpoints.lookup import RemovedError, reading


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


def test_ls_of_a_metric_by_name(run: Any, checkpoints: Any) -> None:
    run.save(7, metrics={"loss": 0.25, "acc": 0.75})
    run.save(8, metrics={"loss": 0.25})
    header, seven, eight = checkpoints("ls", run.url, "--metric", "acc").table
    assert header[5] == "acc"
    assert "0.75" in seven
    assert eight[7:] == ["2", "committed,", "newest"]


def test_ls_tells_what_counts(run: Any, checkpoints: Any) -> None:
    run.save(1, 2, 3)
    run.save_late(9)
    (run.location / "3" / NAME).write_bytes(b"{")
    aside = commit.quarantine(run.location, 2, "rotten")
    result = checkpoints("ls", run.url)
    assert result.code == 0
    states = {row[0]: " ".join(row[1:]) for row in result.table[1:]}
    assert states["1"].endswith("committed, newest")
    assert states["2"] == f"set aside: {aside}"
    assert states["3"].startswith(f"damaged manifest: {run.location}/3/{NAME} is not a readable")
    assert "late: by a superseded attempt" in states["9"]
    rows = json.loads(checkpoints("ls", "--json", run.url).out)
    assert [(row["step"], row["state"], row["newest"]) for row in rows] == [
        (1, "committed", True),
        (2, "set aside", False),
        (3, "damaged manifest", False),
        (9, "late", False),
    ]
    assert rows[0]["attempt"] == 1
    assert rows[0]["bytes"] > 0


def test_a_late_one_is_the_newest_if_there_is_no_other(run: Any, checkpoints: Any) -> None:
    run.save_late(9)
    assert "late, newest" in checkpoints("ls", run.url).out


def test_ls_changes_nothing_where_a_run_goes_on(
    local_run: Any, in_use: Any, checkpoints: Any
) -> None:
    local_run.save(1, 2)
    assert checkpoints("ls", local_run.url).code == 0
    assert ".lock" not in local_run.location.names()
    with in_use(local_run):
        before = local_run.contents()
        assert checkpoints("ls", local_run.url).code == 0
        assert checkpoints("verify", local_run.url, "--all").code == 0
        assert checkpoints("show", local_run.url).code == 0
        assert local_run.contents() == before


def test_verify_finds_what_ls_does_not(run: Any, checkpoints: Any) -> None:
    run.save(1, 2, 3)
    place = run.damage(2)
    assert checkpoints("verify", run.url).code == 0
    assert checkpoints("verify", run.url, 1).table[1][-1] == "sound"
    result = checkpoints("verify", run.url, "--all")
    assert result.code == 65
    assert f"damaged: {place} has CRC32C" in result.out
    assert [
        row["state"] for row in json.loads(checkpoints("verify", run.url, "--all", "--json").out)
    ] == [
        "sound",
        "damaged",
        "sound",
    ]
    assert checkpoints("verify", run.url, 2).code == 65


def test_verify_does_not_pass_over_a_damaged_manifest(run: Any, checkpoints: Any) -> None:
    run.save(1, 2)
    (run.location / "2" / NAME).write_bytes(b"{")
    result = checkpoints("verify", run.url)
    assert result.code == 65
    assert "damaged manifest" in result.out


def test_one_that_is_removed_while_it_is_read_is_not_damaged(run: Any) -> None:
    run.save(1, 2)
    stored = run.directory.checkpoints()[0]
    commit.remove(run.location, 1)
    with pytest.raises(RemovedError, match="was removed while it was read"), reading(stored):
        stored.verify()


def test_none_of_these_needs_tensorflow(local_run: Any, tmp_path: Path) -> None:
    local_run.save(1, 2)
    code = (
        "import sys; from distrib.launch.cli import main; url, copy = sys.argv[1:]\n"
        "for line in (['ls', url], ['show', url], ['verify', url], ['diff', url, '2', '2'],"
        " ['copy', url, copy, '--all'], ['rm', copy, '1'], ['prune', copy, '--keep-last', '1']):\n"
        "    assert main(['checkpoints', *line]) == 0, line\n"
        "assert not {'tensorflow', 'keras', 'jax', 'orbax'} & set(sys.modules)"
    )
    command = [sys.executable, "-P", "-c", code, local_run.url, str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["show"], ["verify"], ["diff", "1", "2"], ["copy", "there"], ["rm", "1"]],
    ids=lambda arguments: arguments[0],
)
def test_no_such_directory(tmp_path: Path, arguments: list[str], checkpoints: Any) -> None:
    command, *rest = arguments
    result = checkpoints(command, tmp_path / "typo", *rest)
    assert result.code == 78
    assert result.err.startswith(f"distrib: {tmp_path}/typo/checkpoints does not exist: no run")
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["show", "verify"])
def test_no_checkpoint(run: Any, command: str, checkpoints: Any) -> None:
    run.directory.begin(1)
    result = checkpoints(command, run.url)
    assert result.code == 78
    assert result.err == f"distrib: There is no checkpoint in {run.location}.\n"
    assert json.loads(checkpoints("ls", run.url, "--json").out) == []
    assert "There is no checkpoint" in checkpoints("ls", run.url).out


def test_no_such_step(run: Any, checkpoints: Any) -> None:
    run.save(7, 250)
    for command in ("show", "verify"):
        result = checkpoints(command, run.url, 9)
        assert result.code == 78
        assert result.err == f"distrib: {run.location} has no step 9; it has 7, 250.\n"


def test_a_store_that_cannot_be_reached(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrib.launch.checkpoints.lookup._PATIENCE", 0.0)
    options = {
        "endpoint_url": "http://127.0.0.1:1",
        "key": "id",
        "secret": "very-secret",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    result = checkpoints("ls", "s3://bucket/run", "--storage-options", json.dumps(options))
    assert result.code == 78
    assert "s3://bucket/run: the server refuses connections" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("options", ['{"secret": "xyzzy"', '["xyzzy"]'])
def test_storage_options_that_are_no_json_object(options: str, checkpoints: Any) -> None:
    result = checkpoints("ls", "s3://bucket/run", "--storage-options", options)
    assert result.code == 64
    assert "--storage-options: this is not" in result.err
    assert "xyzzy" not in result.err
