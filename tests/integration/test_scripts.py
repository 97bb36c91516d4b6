"""The launch scripts for one machine and for MPI: they start ranks and restart lost jobs.

`test_slurm.py` tests the script for Slurm; `make lint` checks all of them with shellcheck.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import forked

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
PLAIN = ["--backend", "multiworker"]  # Only sets TF_CONFIG, so ranks need no TensorFlow.

needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"
)
needs_mpirun = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="mpirun not found: apt-get install openmpi-bin"
)

ADD = """
import horovod.tensorflow as hvd
import tensorflow as tf
hvd.init()
total = hvd.allreduce(tf.constant(hvd.rank() + 1.0), op=hvd.Sum)
print(f"rank {hvd.rank()}: {total.numpy()}")
"""

# In the first start the second rank ends in a given way; in later starts all ranks finish.
ONCE = """
import os, pathlib, sys, time
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
been, zero = (pathlib.Path(__file__).with_name(name) for name in ("been", "zero"))
if been.exists():
    print(f"rank {rank} finished")
    sys.exit(0)
print("ready", flush=True)
if rank == 0:
    zero.touch()
if rank == 1:
    while not zero.exists():  # The first rank has checked for `been` by then.
        time.sleep(0.01)
    been.touch()
    os.kill(os.getpid(), 9) if sys.argv[1] == "kill" else sys.exit(int(sys.argv[1]))
time.sleep(600)
"""

WAIT = """
import signal, sys, time
def stop(number, frame):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
sys.stdout.write("ready\\n")  # One write: the other rank's output could split a `print`.
while True:
    time.sleep(600)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a launch script on a Python script, with this environment the active one."""
    started = []
    active = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }

    def begin(
        script: str, text: str, *arguments: str, options: list[str] | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        path = tmp_path / "train.py"
        path.write_text(text)
        process = subprocess.Popen(
            [str(LAUNCH / script), *(options or []), str(path), *arguments],
            env=os.environ | active | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def wait_for(line: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert line in process.stdout.readline()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.name))
def test_without_arguments_they_print_their_usage(script: Path) -> None:
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert done.returncode == 64
    assert done.stderr.startswith("usage: ")


@needs_horovod
@pytest.mark.slow
@pytest.mark.parametrize("script", ["horovodrun.sh", pytest.param("mpirun.sh", marks=needs_mpirun)])
def test_they_start_ranks(script: str, start: Start, tmp_path: Path) -> None:
    (tmp_path / "add.py").write_text(ADD)
    _, _, _, stand_in, nursery, added = forked(tmp_path / "add.py")
    text = Path(stand_in).read_text()
    job = start(script, text, nursery, added, NP="2", CUDA_VISIBLE_DEVICES="-1")
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert "rank 0: 3.0" in out
    assert "rank 1: 3.0" in out


# On this machine


def test_by_default_local_sh_starts_one_process(start: Start) -> None:
    script = "import os; print('alone' if 'HOROVOD_RANK' not in os.environ else 'one of many')"
    out, err = start("local.sh", script).communicate(timeout=120)
    assert out == "alone\n", err


def test_local_sh_starts_np_processes(start: Start) -> None:
    out, err = start("local.sh", "print('here')", options=PLAIN, NP="3").communicate(timeout=120)
    assert out.count("here") == 3, err


# With Open MPI


@needs_mpirun
@pytest.mark.parametrize(("end", "code"), [("kill", 137), ("76", 76)])
def test_mpirun_restarts_after_a_loss(end: str, code: int, start: Start) -> None:
    job = start("mpirun.sh", ONCE, end, NP="2")
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert f"mpirun.sh: exit code {code}; starting again in 5 s (1)." in err
    assert "rank 0 finished" in out
    assert "rank 1 finished" in out


@needs_mpirun
@pytest.mark.parametrize(
    ("end", "restarts", "code"), [("1", "100", 1), ("70", "100", 70), ("kill", "0", 137)]
)
def test_mpirun_does_not_restart_after_other_exit_codes(
    end: str, restarts: str, code: int, start: Start
) -> None:
    job = start("mpirun.sh", ONCE, end, NP="2", RESTARTS=restarts)
    _, err = job.communicate(timeout=120)
    assert job.returncode == code
    assert "starting again" not in err


@needs_mpirun
def test_mpirun_lets_ranks_save_after_sigterm(start: Start) -> None:
    job = start("mpirun.sh", WAIT, NP="2")
    for _ in range(2):
        wait_for("ready", job)
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 75, err
    assert "saved" in out


@needs_mpirun
def test_mpirun_may_be_stopped_between_two_starts(start: Start) -> None:
    job = start("mpirun.sh", ONCE, "76", NP="2")
    assert job.stderr is not None
    while "starting again" not in job.stderr.readline():
        pass
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 75
    assert "finished" not in out
