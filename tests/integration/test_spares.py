"""Spares under `distrib run`: they become ranks after a kill, and none outlives the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hosts as rig
import pytest
from harness import JOB, environment, result, undisturbed

from distrib.errors import EXIT_FINISHED

# `distrib run` that starts spares at once.
HASTY = """
import sys
from distrib.launch.cli import main
from distrib.launch.run import spares, supervisor
spares.DELAY_SECONDS = spares.ROUND_SECONDS = 0.1
{}
sys.exit(main())
"""
SMALL_LIBRARY = """
spares.MODULES, spares.BACKENDS = {}, 'library_of_'
supervisor.NOTICE_SECONDS = 0.3
"""
# A rank that trains until it is told how to end, without TensorFlow.
TRAINS = """
import json, os, sys, time
from pathlib import Path
import library_of_multiworker
from distrib.heartbeat import TRAINING, heartbeat
folder = Path(sys.argv[1])
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
was_spare = "DISTRIB_SPARE" in Path("/proc/self/environ").read_text()
with (folder / f"rank-{rank}").open("a") as file:
    print(os.getpid(), was_spare, file=file)
heartbeat.enter(TRAINING)
heartbeat.begin_run("run", 0, False)
while not (folder / "end").exists():
    heartbeat.enter(TRAINING)
    time.sleep(0.01)
sys.exit(int((folder / "end").read_text()))
"""


class Launcher:
    """`distrib run` of two ranks, and the processes that it has started."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            prepare(folder, "-np", "2", *options),
            env=environment() | {"PYTHONPATH": str(folder)},
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_spares(self) -> None:
        wait_for_imports(self.folder, self.process)

    def processes(self) -> list[int]:
        """Return the processes with the script on their command line, except the launcher."""
        found = rig.processes(str(self.folder / "train.py"))
        return [pid for pid in found if not is_launcher(pid)]


def prepare(folder: Path, *options: str) -> list[str]:
    """Write the script and its library, and return the command that runs it."""
    library = f"open({str(folder / 'imported')!r}, 'a').write('.')"
    (folder / "library_of_multiworker.py").write_text(library)
    script = folder / "train.py"
    script.write_text(TRAINS)
    command = [sys.executable, "-P", "-c", HASTY.format(SMALL_LIBRARY), "run", *options]
    return [*command, "--backend", "multiworker", str(script), str(folder)]


def wait_for_imports(folder: Path, process: subprocess.Popen[Any]) -> None:
    """Wait until both ranks and both spares have imported."""
    imported = folder / "imported"
    while not imported.exists() or len(imported.read_text()) < 4:
        assert process.poll() is None
        time.sleep(0.02)


def is_launcher(pid: int) -> bool:
    try:
        return b"run" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # It has just ended.
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    launchers = []

    def start(*options: str) -> Launcher:
        launchers.append(Launcher(tmp_path, *options))
        return launchers[-1]

    yield start
    for launcher in launchers:
        launcher.process.kill()
        launcher.process.wait()


@pytest.mark.parametrize(
    "end", ["finished", "failed", signal.SIGTERM, signal.SIGINT, signal.SIGKILL]
)
def test_no_spare_outlives_the_job(
    start: Callable[..., Launcher], tmp_path: Path, end: str | signal.Signals
) -> None:
    launcher = start()
    launcher.wait_for_spares()
    assert len(launcher.processes()) == 4
    if isinstance(end, signal.Signals):
        launcher.process.send_signal(end)
    else:
        (tmp_path / "end").write_text("0" if end == "finished" else "78")
    launcher.process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while launcher.processes():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TwoHosts:
    """`distrib run` of one rank on each of two hosts.

    Attributes:
        launchers: Of each host that has one; the first one supervises the ranks.
    """

    def __init__(self, folder: Path, hosts: Sequence[rig.Host], way: str) -> None:
        self.folder = folder
        self.hosts = hosts
        options = {"ssh": ["-H", "h0:1,h1:1"], "join": ["--join", "h0", "-np", "2"]}[way]
        command = prepare(folder, *options)
        variables = {"PYTHONPATH": str(folder), "DISTRIB_JOIN_TOKEN": "secret"}
        self.launchers = [
            host.start(command, env=environment() | variables, stderr=subprocess.DEVNULL)
            for host in (hosts if way == "join" else hosts[:1])
        ]
        wait_for_imports(folder, self.launchers[0])

    def ranks(self, rank: int) -> list[list[str]]:
        """Return the pid of a rank on its host, and whether it was a spare, of each attempt."""
        return [line.split() for line in (self.folder / f"rank-{rank}").read_text().splitlines()]

    def left(self) -> list[int]:
        """Return rank agents, ranks and spares."""
        words = ("rank_agent.py", str(self.folder / "train.py"))
        found = [pid for host in self.hosts for word in words for pid in host.processes(word)]
        return [pid for pid in found if not is_launcher(pid)]


@pytest.fixture(params=["ssh", "join"])
def two_hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Iterator[TwoHosts]:
    reason = rig.missing()
    if reason is not None:
        pytest.skip(reason)
    with rig.hosts(tmp_path_factory.mktemp("hosts"), count=2) as made:
        job = TwoHosts(tmp_path, made, request.param)
        yield job
        for process in job.launchers:
            process.kill()
            process.wait()


def test_spares_on_other_hosts_become_ranks(two_hosts: TwoHosts, tmp_path: Path) -> None:
    two_hosts.hosts[1].run(["kill", "-KILL", two_hosts.ranks(1)[0][0]])
    while len(two_hosts.ranks(0)) < 2 or len(two_hosts.ranks(1)) < 2:
        assert two_hosts.launchers[0].poll() is None
        time.sleep(0.02)
    for rank in range(2):
        assert [was_spare for _, was_spare in two_hosts.ranks(rank)] == ["False", "True"]
    (tmp_path / "end").write_text("0")
    assert [process.wait(60) for process in two_hosts.launchers] == [0] * len(two_hosts.launchers)
    assert two_hosts.left() == []


def test_no_spare_on_another_host_outlives_the_launcher(
    two_hosts: TwoHosts, tmp_path: Path
) -> None:
    assert len(two_hosts.left()) >= 8  # Each rank and each spare has an agent.
    found = two_hosts.hosts[0].processes(str(tmp_path / "train.py"))
    (launcher,) = filter(is_launcher, found)
    os.kill(launcher, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while two_hosts.left():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_that_wants_no_spares(start: Callable[..., Launcher]) -> None:
    launcher = start("--no-spares")
    while len(launcher.processes()) < 2:
        time.sleep(0.02)
    time.sleep(1)
    assert len(launcher.processes()) == 2


# In each attempt one rank kills itself, at a point of `job.py`, when there are spares.
KILLS = [(1, "before_step:2"), (0, "save_uncommitted:2"), (1, "in_step:10"), (1, "validation:1")]
MATRIX = """
import os, signal, sys, time
from pathlib import Path
run, tests, kills = sys.argv[1:]

def count_spares():
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = run.encode() in (process / "cmdline").read_bytes()
            count += is_ours and (process / "oom_score_adj").read_text() == "1000\\n"
        except OSError:
            pass
    return count

def kill_when_spares_wait(pid, number, kill=os.kill):
    while number == signal.SIGKILL and count_spares() < 2:
        time.sleep(0.1)
    kill(pid, number)

os.kill = kill_when_spares_wait
attempts = Path(f"{run}-attempts-{os.environ['HOROVOD_RANK']}")
with attempts.open("a+") as file:
    print("DISTRIB_SPARE" in Path("/proc/self/environ").read_text(), file=file, flush=True)
    file.seek(0)
    attempt = len(file.readlines())
sys.argv[1:] = ["--run", run]
if attempt <= len(kills.split()):
    rank, point = kills.split()[attempt - 1].split("/")
    sys.argv += ["--kill-rank", rank, "--kill", point]
sys.path.insert(0, tests)
import job
job.main()
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_kills_of_ranks_that_were_spares(tmp_path: Path) -> None:
    pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")
    script = tmp_path / "matrix.py"
    script.write_text(MATRIX)
    run = tmp_path / "run"
    kills = " ".join(f"{rank}/{point}" for rank, point in KILLS)
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-c", HASTY.format(""), "run", "-np", "2"),
            *(str(script), str(run), str(JOB.parent), kills),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == EXIT_FINISHED, done.stderr[-4000:]
    for rank in range(2):
        were_spares = Path(f"{run}-attempts-{rank}").read_text().split()
        assert were_spares == ["False"] + ["True"] * len(KILLS)
    assert result(run) == undisturbed(ranks=2)
