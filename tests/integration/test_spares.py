"""Spares under `distrib run`: they become ranks after a kill, and none outlives the job."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import JOB, environment, result, undisturbed

from distrib.errors import EXIT_FINISHED

# `distrib run` that starts spares at once.
HASTY = """
import sys
from distrib.launch.cli import main
from distrib.launch.run import spares
spares.DELAY_SECONDS = spares.ROUND_SECONDS = 0.1
{}
sys.exit(main())
"""
# A rank that trains until it is told how to end, without TensorFlow.
TRAINS = """
import sys, time
from pathlib import Path
import library_of_multiworker
from distrib.heartbeat import TRAINING, heartbeat
heartbeat.enter(TRAINING)
heartbeat.begin_run("run", 0, False)
folder = Path(sys.argv[1])
while not (folder / "end").exists():
    heartbeat.enter(TRAINING)
    time.sleep(0.01)
sys.exit(int((folder / "end").read_text()))
"""


class Launcher:
    """`distrib run` of two ranks, and the processes that it has started."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        (folder / "library_of_multiworker.py").write_text("open('imported', 'a').write('.')")
        script = folder / "train.py"
        script.write_text(TRAINS)
        patches = "spares.MODULES, spares.BACKENDS = {}, 'library_of_'"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-c", HASTY.format(patches), "run", "-np", "2"),
                *("--backend", "multiworker", *options, str(script), str(folder)),
            ],
            env=environment() | {"PYTHONPATH": str(folder)},
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_spares(self) -> None:
        """Wait until both ranks and both spares have imported."""
        imported = self.folder / "imported"
        while not imported.exists() or len(imported.read_text()) < 4:
            assert self.process.poll() is None
            time.sleep(0.02)

    def processes(self) -> list[str]:
        """Return the processes with the script on their command line, except the launcher."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if bytes(self.folder / "train.py") in command and b"run" not in command.split(b"\0"):
                found.append(process.name)
        return found


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
