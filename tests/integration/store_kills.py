"""Kills a job, its store, or both, repeatedly and at random moments.

    python tests/integration/store_kills.py --kills 200 --seed 1

Each run is restarted until it finishes. It must then have the same bits and the same history as a
run without kills, and leave no orphaned files in the store. The store is Ceph, on loopback.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ceph import start_ceph
from harness import KILLED, begin, finish, result
from stores import Server

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.storage.locate import locate
from distrib.storage.location import Location

VICTIMS = ("chief", "server", "both")
MAX_SECONDS_TO_KILL = 2.5
TIMEOUT = 120.0


def disturbed(
    server: Server,
    run: Path,
    kills: int,
    rng: random.Random,
    arguments: Sequence[str],
    count: Counter[str] | None = None,
) -> dict[str, Any]:
    """Run the job with up to `kills` kills until it finishes; return its result."""
    store = server.bucket() + "/run"
    count = Counter() if count is None else count
    for _ in range(kills):
        job = begin(run, *arguments, "--store", store, **server.environment)
        deadline = time.monotonic() + rng.uniform(0.3, MAX_SECONDS_TO_KILL)
        while job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if job.poll() is not None:
            break
        victim = rng.choice(VICTIMS)
        count[victim] += 1
        if victim != "server":
            job.kill()
        if victim != "chief":
            server.kill9()
            time.sleep(rng.uniform(0, 0.5))
            server.start()
        _check_end(job, run, victim)
    else:
        _check_end(begin(run, *arguments, "--store", store, **server.environment), run, "nobody")
    location = locate(store, "store", server.storage_options)
    assert not (orphans := orphaned_files(location)), orphans
    return result(run)


def orphaned_files(store: Location) -> list[str]:
    """Return the files in the store of a finished run that no manifest refers to."""
    directory = CheckpointDirectory(store)
    known = {"attempts"}
    for checkpoint in directory.checkpoints():
        assert not checkpoint.late
        checkpoint.verify()
        known |= {str(checkpoint.manifest.step)}
        children = (directory.location / str(checkpoint.manifest.step)).names()
        known_children = [checkpoint.manifest.root, "manifest.json"]
        assert children == sorted(known_children), (checkpoint.manifest.step, children)
    return sorted({*directory.location.names()} - known)


def _check_end(job: Any, run: Path, victim: str) -> None:
    code = job.wait(TIMEOUT)
    expected = KILLED if victim in ("chief", "both") else 0
    output = run.parent / f"{run.name}.output"
    assert code in (expected, 0), (
        f"{victim} killed, exit code {code}:\n{output.read_text()[-4000:]}"
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, count, runs = random.Random(options.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = finish(folder / "undisturbed")
        (folder / "ceph").mkdir()
        server = start_ceph(folder / "ceph")
        try:
            while count.total() < options.kills:
                runs += 1
                kills = min(8, options.kills - count.total())
                got = disturbed(server, folder / f"run-{runs}", kills, rng, [], count)
                differ = {key: (got[key], undisturbed[key]) for key in got}
                differ = {key: (one, two) for key, (one, two) in differ.items() if one != two}
                assert not differ, f"run {runs} differs in {differ}"
                print(f"{count.total()} kills, {runs} runs, all equal: {dict(count)}", flush=True)
        finally:
            server.kill9()
    return 0


if __name__ == "__main__":
    sys.exit(main())
