from typing import Any

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
    run.save_superseded(9)
    before = run.contents()
    result = checkpoints("rm", run.url, 1, 2)
    assert result.code == 78
    assert f"Nothing was removed: {run.location}/2 is the newest" in result.err
    assert run.contents() == before
    assert checkpoints("rm", run.url, 9).code == 0
    assert checkpoints("rm", run.url, 1, 2, "--force").code == 0
    assert run.directory.steps() == []


def test_rm_of_a_missing_step(run: Any, checkpoints: Any) -> None:
    run.save(1, 2)
    result = checkpoints("rm", run.url, 1, 9)
    assert result.code == 78
    assert "has no step 9; it has 1, 2." in result.err
    assert run.directory.steps() == [1, 2]


def test_rm_of_a_damaged_manifest(run: Any, checkpoints: Any) -> None:
    run.save(1, 2)
    (run.location / "1" / NAME).write_bytes(b"{")
    assert checkpoints("rm", run.url, 1).code == 0
    assert not [path for path in run.contents() if "/1/" in path]


def test_a_live_run_is_left_alone(local_run: Any, training_into: Any, checkpoints: Any) -> None:
    local_run.save(1, 2)
    prune = ["prune", local_run.url, "--keep-last", 1]
    with training_into(local_run) as pid:
        for command in (["rm", local_run.url, 1], prune):
            result = checkpoints(*command)
            assert result.code == 78
            assert f"Nothing was removed. Another process (pid {pid}) is training" in result.err
        assert checkpoints(*prune, "--dry-run").out.startswith("would remove")
    assert local_run.directory.steps() == [1, 2]
    assert checkpoints(*prune).code == 0
    assert local_run.directory.steps() == [2]
