"""Spares of a job, with real rank agents and interpreters, and a small library for TensorFlow."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrib.heartbeat import OUTSIDE, STARTING, TRAINING
from distrib.launch.hosts.channel import Channel
from distrib.launch.hosts.host_pool import start_local_agent
from distrib.launch.hosts.placement import Host, RankPlacement, place_ranks
from distrib.launch.run import spares as module
from distrib.launch.run.rank_process import RankProcess
from distrib.launch.run.spares import Spares

PLACEMENTS = place_ranks([Host("h0", 2), Host("h1", 1)], 3)


class Job:
    """The attempts of a job; counts the rank agents that were started for spares."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        (folder / "library.py").write_text("open('imported', 'a').write('.')")
        (folder / "train.py").write_text("import library, os; print(os.environ['RANK'])")
        self.started: list[RankPlacement] = []
        self.spares = Spares(self._connect, "library", **{"enabled": True} | options)

    def _connect(self, placement: RankPlacement) -> Channel:
        self.started.append(placement)
        return start_local_agent()

    def spec(self, placement: RankPlacement) -> dict[str, Any]:
        return {
            "command": [sys.executable, "train.py"],
            "directory": str(self.folder),
            "environment": {"PYTHONPATH": str(self.folder)},
            "terminals": {1: (24, 80)} if placement.rank == 0 else {},
            "lease": None,
        }

    def take(self, placements: Any = PLACEMENTS) -> dict[RankPlacement, Channel]:
        return self.spares.take({placement: self.spec(placement) for placement in placements})

    def train(self, *ranks: int, phase: str = TRAINING) -> None:
        for rank in ranks or range(len(PLACEMENTS)):
            assert self.spares.record(rank, {"phase": phase}) is None

    def misfit(self, rank: int, variables: Any) -> str | None:
        facts = {"phase": OUTSIDE, "misfit": "because", "variables": variables}
        return self.spares.record(rank, facts)

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ready(self) -> None:
        imported = self.folder / "imported"
        self.wait(lambda: imported.exists() and len(imported.read_text()) >= len(PLACEMENTS))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(module, "MODULES", {})
    monkeypatch.setattr(module, "BACKENDS", "")
    job = Job(tmp_path)
    yield job
    job.spares.close()


def output(placement: RankPlacement, channel: Channel, spec: Any) -> bytes:
    environment = {**spec["environment"], "RANK": str(placement.rank)}
    rank = RankProcess(placement, channel, {**spec, "environment": environment})
    written = b""
    while rank.open_fds:
        for stream in list(rank.open_fds):
            written += b"".join(data for fd, data in rank.read(stream)[0] if fd == 1)
    while (code := rank.exit_code()) is None:
        time.sleep(0.01)
    assert code == 0
    return written


def test_spares_become_the_ranks_of_the_next_attempt(job: Job) -> None:
    assert job.take() == {}
    job.train(0, 1, 2, phase=STARTING)
    job.train(0, 1)
    time.sleep(0.2)
    assert job.started == []  # Rank 2 has not trained yet.
    job.train(2)
    job.ready()
    taken = job.take()
    assert sorted(job.started, key=lambda placement: placement.rank) == PLACEMENTS
    assert list(taken) == PLACEMENTS
    for placement, channel in taken.items():
        written = output(placement, channel, job.spec(placement))
        assert written == b"%d\n" % placement.rank
    assert len((job.folder / "imported").read_text()) == len(PLACEMENTS)


def test_ranks_that_have_moved(job: Job) -> None:
    job.take()
    job.train()
    job.ready()
    left = place_ranks([Host("h0", 1)], 1)  # The first host has lost a slot, the second is gone.
    assert list(job.take(left)) == left
    assert job.take(place_ranks([Host("h2", 3)], 3)) == {}


def test_a_spare_that_ends_is_replaced(job: Job) -> None:
    job.take()
    job.train()
    job.ready()
    job.spares._waiting[0].channel.abort()
    job.wait(lambda: len(job.started) == 4)
    assert len(job.take()) >= 2


def test_spares_that_always_end_are_started_ever_more_slowly(job: Job) -> None:
    (job.folder / "library.py").write_text("raise RuntimeError")
    job.take()
    job.train()
    job.wait(lambda: max(job.spares._pauses.values(), default=0) >= 0.2)


def test_variables_that_the_script_sets(job: Job) -> None:
    job.take()
    job.train()
    job.ready()
    job.take()
    message = job.misfit(0, {"LEVEL": "3"})
    assert message == "rank 0 could not start from a spare: because."
    assert job.misfit(1, {"LEVEL": "3"}) is None  # One message is enough.
    (job.folder / "library.py").write_text("import os; open(os.environ['LEVEL'], 'a').write('.')")
    job.train()
    job.wait(lambda: (job.folder / "3").exists())
    job.take()
    message = job.misfit(0, {"LEVEL": "4"})
    assert message
    assert message.endswith("The job has no spares any more.")
    started = len(job.started)
    job.train()
    time.sleep(0.2)
    assert len(job.started) == started


def test_a_script_that_no_spare_fits(job: Job) -> None:
    job.take()
    message = job.misfit(0, None)
    assert message
    assert message.endswith("The job has no spares any more.")


def test_a_job_without_spares(tmp_path: Path) -> None:
    job = Job(tmp_path, enabled=False)
    job.take()
    job.train()
    assert job.spares._thread is None


def test_closing_ends_all(job: Job) -> None:
    job.take()
    job.train()
    job.ready()
    channels = [spare.channel for spare in job.spares._waiting]
    job.spares.close()
    assert channels
    assert not any(channel.is_open() for channel in channels)
