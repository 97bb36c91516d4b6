"""Jobs with all files in an object store: their result is the same after kills and takeovers."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from harness import KILLED, begin, finish, result, start, undisturbed
from store_kills import disturbed, orphaned_files
from stores import Server

from distrib.checkpoint import commit
from distrib.checkpoint.attempts import newest
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.errors import EXIT_CONFIGURATION
from distrib.storage.locate import locate
from distrib.storage.location import Location

SHORT = ["--epochs", "2"]


@pytest.fixture(params=["ceph", "gcs"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Location:
    """A folder on a server that this process and its jobs find by environment variables alone."""
    server: Server = request.getfixturevalue(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return locate(server.bucket() + "/runs/17", "store", server.storage_options)


@pytest.mark.slow
def test_killed_at_every_stage_of_a_save(store: Location, tmp_path: Path) -> None:
    kills = ["save_arrays:2", "save_uncommitted:2", "save_committed:1", "after_step:14"]
    kills += ["save_prune:1", "epoch_end:1", "restore_read:1"]
    for kill in kills:
        done = start(tmp_path / "run", *SHORT, "--store", str(store), "--kill", kill)
        assert done.returncode == KILLED, f"{kill} did not strike:\n{done.stderr[-4000:]}"
    done = start(tmp_path / "run", *SHORT, "--store", str(store))
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"resuming from {store}/checkpoints/" in done.stderr
    assert result(tmp_path / "run") == undisturbed(*SHORT)
    assert orphaned_files(store) == []
    entry = newest(store / "checkpoints")
    assert entry is not None
    # The attempt that was killed while it read a checkpoint had not entered the ledger yet.
    assert (entry.attempt, entry.failures, entry.end) == (len(kills), len(kills) - 1, "finished")


@pytest.mark.slow
@pytest.mark.parametrize("store", ["ceph"], indirect=True)
def test_an_older_chief_that_is_still_alive_stops_and_damages_nothing(
    store: Location, tmp_path: Path
) -> None:
    arguments = [*SHORT, "--store", str(store)]
    old = begin(tmp_path / "old", *arguments)
    try:
        while not (store / "checkpoints" / "3" / "manifest.json").exists():
            assert old.poll() is None, (tmp_path / "old.output").read_text()[-4000:]
            time.sleep(0.05)
        pid = json.loads((store / "checkpoints/attempts/00000001.json").read_bytes())["pid"]
        os.kill(pid, signal.SIGSTOP)  # Like a paused virtual machine, or a host without network.
        assert finish(tmp_path / "new", *arguments) == undisturbed(*SHORT)
        os.kill(pid, signal.SIGCONT)
        assert old.wait(60) == EXIT_CONFIGURATION
    finally:
        old.kill()
        old.wait()
    assert "has been superseded: attempt 2 (pid" in (tmp_path / "old.output").read_text()
    assert not (tmp_path / "old" / "result.json").exists()
    directory = CheckpointDirectory(store)
    assert {checkpoint.manifest.attempt for checkpoint in directory.checkpoints()} == {2}
    for checkpoint in directory.checkpoints():
        checkpoint.verify()
    directory.remove_orphans(3)
    assert orphaned_files(store) == []
    assert commit.quarantined(directory.location) == []
    # Another start finds the run finished.
    assert finish(tmp_path / "again", *arguments) == undisturbed(*SHORT)


@pytest.mark.slow
def test_random_kills_of_chief_and_server(ceph: Server, tmp_path: Path) -> None:
    """A short run of `python tests/integration/store_kills.py`."""
    seed = random.randrange(1000)
    got = disturbed(ceph, tmp_path / "run", 4, random.Random(seed), SHORT)
    assert got == undisturbed(*SHORT), f"seed {seed}"
