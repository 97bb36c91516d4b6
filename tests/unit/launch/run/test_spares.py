"""Spares of a job, with real rank agents and interpreters, and a small library for TensorFlow."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrib.errors import ConfigurationError
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
        self.channels: list[Channel] = []
        self.before_start: Callable[[], object] = list  # Called with no arguments.
        self.environments: dict[int, dict[str, str]] = {}
        self.lease: float | None = None
        self.spares = Spares(self._connect, "library", **{"enabled": True} | options)

    def _connect(self, placement: RankPlacement) -> Channel:
        self.started.append(placement)
        self.before_start()
        self.channels.append(start_local_agent())
        return self.channels[-1]

    def spec(self, placement: RankPlacement) -> dict[str, Any]:
        return {
            "command": [sys.executable, "train.py"],
            "directory": str(self.folder),
            "environment": {"PYTHONPATH": str(self.folder)}
            | self.environments.get(placement.rank, {}),
            "terminals": {1: (24, 80)} if placement.rank == 0 else {},
            "lease": self.lease,
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
    taken = job.take(left)
    assert list(taken) == left
    # The others have been ended: the launcher may need their files.
    assert [channel for channel in job.channels if channel.is_open()] == list(taken.values())
    assert job.take(place_ranks([Host("h2", 3)], 3)) == {}


def test_a_spare_that_has_imported_with_other_variables(job: Job) -> None:
    """Rank 1 has a log level of its own, for one, so its spare cannot become rank 0."""
    job.environments = {rank: {"LEVEL": "2"} for rank in (1, 2)}
    job.take()
    job.train()
    job.ready()
    moved = place_ranks([Host("h1", 1), Host("h0", 2)], 3)
    assert [placement.rank for placement in job.take(moved)] == [1]


def test_a_terminal_of_another_size(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.take()
    job.train()
    job.ready()
    specs = {placement: job.spec(placement) for placement in PLACEMENTS}
    specs[PLACEMENTS[0]]["terminals"] = {1: (33, 99)}
    assert list(job.spares.take(specs)) == PLACEMENTS


def test_a_restart_while_a_spare_is_being_started(job: Job) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go_on.wait()

    job.before_start = hold
    job.take()
    job.train()
    begun.wait()
    assert job.take() == {}
    go_on.set()
    job.wait(lambda: job.channels and not job.channels[0].is_open())
    assert len(job.started) == 1  # Nor does the launcher go on with the others.


def test_keepalives_while_a_spare_is_being_started(job: Job) -> None:
    go_on = threading.Event()
    job.lease = 2.0
    job.take()
    job.before_start = lambda: len(job.started) > 1 and go_on.wait()
    job.train()
    job.wait(lambda: len(job.started) == 2)
    time.sleep(2 * job.lease)
    assert job.channels[0].is_open()
    go_on.set()


@pytest.mark.parametrize("error", [OSError(), ConfigurationError("too many files")])
def test_spares_that_cannot_be_started(job: Job, error: Exception) -> None:
    def fail() -> None:
        raise error

    job.before_start = fail
    job.take()
    job.train()
    job.wait(lambda: max(job.spares._pauses.values(), default=0) >= 0.2)
    assert job.take() == {}


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


def test_variables_that_differ_from_rank_to_rank(job: Job) -> None:
    """Such as CUDA_VISIBLE_DEVICES."""
    (job.folder / "library.py").write_text("import os; open(os.environ['N'], 'a').write('.')")
    job.environments = {rank: {"N": "before"} for rank in range(3)}
    job.take()
    job.train()
    job.wait(lambda: (job.folder / "before").exists())
    job.take()
    messages = [job.misfit(rank, {"N": str(rank)}) for rank in (0, 1)]
    assert messages == ["rank 0 could not start from a spare: because.", None]
    job.train()
    job.wait(lambda: (job.folder / "0").exists())
    # Rank 2 had no spare. Most likely its script sets what the others set.
    job.wait(lambda: (job.folder / "1").exists() and (job.folder / "1").read_text() == "..")
    taken = job.take()
    assert len(taken) == 3
    script = "import os; os.environ['N'] = os.environ['RANK']; import library; print(os.getpid())"
    (job.folder / "train.py").write_text(script)
    for placement in PLACEMENTS[:2]:
        output(placement, taken[placement], job.spec(placement))
    assert [(job.folder / name).read_text() for name in ("0", "1")] == [".", ".."]
    message = job.misfit(2, {"N": "2"})
    assert message
    assert message.endswith("The job has no spares any more.")


def test_a_script_that_no_spare_fits(job: Job) -> None:
    job.take()
    message = job.misfit(0, None)
    assert message
    assert message.endswith("The job has no spares any more.")


def test_a_job_without_spares(tmp_path: Path) -> None:
    job = Job(tmp_path, enabled=False)
    job.take()
    job.train()
    assert job.spares._threads == []


@pytest.mark.slow
def test_the_backend_imports_its_library_when_it_starts() -> None:
    pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")
    threads = "os.listdir('/proc/self/task')"
    script = f"import distrib.backends.horovod, os; before = {threads}; import horovod.tensorflow"
    script += f"; assert {threads} == before"
    subprocess.run([sys.executable, "-P", "-c", script], check=True)
    modules = Spares(lambda placement: start_local_agent(), "horovod", True)._modules
    assert list(modules)[-2:] == ["distrib.backends.horovod", "horovod.tensorflow"]


def test_closing_ends_all(job: Job) -> None:
    job.take()
    job.train()
    job.ready()
    channels = [spare.channel for spare in job.spares._waiting]
    job.spares.close()
    assert channels
    assert not any(channel.is_open() for channel in channels)
