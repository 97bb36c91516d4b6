"""A job that restarts itself after kills and hangs, until it is given up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from harness import JOB, environment, forked, launch, result, undisturbed

from distrib.errors import EXIT_NO_PROGRESS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "backend",
    ["horovod", pytest.param("multiworker", marks=pytest.mark.exhaustive)],
    indirect=True,
    scope="module",
)
def test_a_job_with_a_bug_is_given_up_and_then_fixed(backend: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    bug = ["--kill-rank", "1", "--kill", "bug:10"]
    done = launch(2, JOB, "--run", str(run), *bug, backend=backend, attempts=5)
    assert done.returncode == EXIT_NO_PROGRESS, done.stderr[-4000:]
    assert done.stderr.count("Starting again") == 1
    assert done.stderr.count("[rank 1] ValueError: a bug in step 10") == 2
    last = done.stderr.splitlines()[-1]
    assert "two attempts in a row have failed after step " in last
    assert "rank 1 on localhost ended with exit code 1: ValueError: a bug in step 10" in last
    assert launch(2, JOB, "--run", str(run), backend=backend, attempts=2).returncode == 0
    assert result(run) == undisturbed(ranks=2, backend=backend)


STUCK = """
import os, sys, threading
from pathlib import Path
import keras
sys.path.insert(0, os.environ["TESTS"])
marker, *rest = sys.argv[1:]
sys.argv[1:] = rest
import job

class Stuck(job.Killer):
    def at(self, point, number):
        if (point, number) == ("before_step", 8) and not Path(marker).exists():
            Path(marker).touch()
            self.wait_forever()

    def wait_forever(self):
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

job.Killer = Stuck
job.main()
"""


@pytest.mark.parametrize(
    "backend",
    ["horovod", pytest.param("multiworker", marks=pytest.mark.exhaustive)],
    indirect=True,
    scope="module",
)
def test_a_hang_shows_all_stacks_and_the_job_restarts(backend: str, tmp_path: Path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    run = tmp_path / "run"
    arguments = [str(tmp_path / "marker"), "--run", str(run)]
    arguments += ["--kill-rank", "1", "--kill", "stuck:0"]
    command = [str(Path(sys.executable).with_name("distrib")), "run", "-np", "2"]
    command += ["--backend", backend, "--step-timeout", "8", *forked(script, *arguments)]
    variables = {"TESTS": str(JOB.parent)}
    done = subprocess.run(
        command, env=environment() | variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "the job hangs: no rank has made progress for 8 s (last step " in done.stderr
    assert "in wait_forever" in done.stderr
    assert done.stderr.count("Fatal Python error: Aborted") == 2
    assert "the job was hanging. Starting again now." in done.stderr
    assert result(run) == undisturbed(ranks=2, backend=backend)


SLOW = """
import time
import keras, numpy as np, distrib
cluster = distrib.init()
with cluster.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(cluster.optimizer("sgd"), "mse")

class Slow(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        time.sleep(0.05 if cluster.rank == 1 else 0.001)

x = np.ones((480, 4), "float32")
model.fit(cluster.dataset((x, x[:, :1]), 4), verbose=0, callbacks=[Slow()])
"""


def test_a_slow_rank_is_named(backend: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SLOW)
    launcher = (
        "import sys; from distrib.launch import cli; from distrib.launch.run import hang_detector;"
        "hang_detector.WINDOW_SECONDS = 2.0;"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-P", "-c", launcher, "run", "-np", "2", "--backend", backend]
    done = subprocess.run(
        [*command, *forked(script)], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "distrib: slow: rank 1 on localhost; the other ranks wait " in done.stderr


APART = """
import os, sys
import keras, numpy as np, distrib
cluster = distrib.init()
with cluster.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(cluster.optimizer("sgd"), "mse")
x = np.ones((480, 4), "float32")
data = cluster.dataset((x, x[:, :1]), 16)

class Exit(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 4 and cluster.rank == 1:
            {"sys.exit": sys.exit, "os._exit": os._exit}.get(sys.argv[1], int)(0)

    def on_train_batch_begin(self, batch, logs=None):
        if cluster.rank == 1 and sys.argv[1] == "raise":
            raise ValueError("a bug in the first step")

model.fit(data, verbose=0, callbacks=[Exit()])
if cluster.is_chief:
    model.evaluate(data, verbose=0)
if sys.argv[1] == "barrier":
    cluster.collectives.barrier()
"""
EARLY = "distrib: rank 1 on localhost ended with exit code 0"


@pytest.mark.parametrize(
    ("what", "code", "begin", "place"),
    [
        ("barrier", 78, "distrib: rank ", "called different collectives"),
        ("sys.exit", 70, EARLY, "while rank 0 on localhost still needed it"),
        pytest.param("os._exit", 70, EARLY, "still needed it", marks=pytest.mark.exhaustive),
        pytest.param(
            *(
                "raise",
                1,
                "distrib: the job has not trained a batch yet, ",
                "ValueError: a bug in the first",
            ),
            marks=pytest.mark.exhaustive,
        ),
    ],
)
@pytest.mark.parametrize(
    "backend",
    ["horovod", pytest.param("multiworker", marks=pytest.mark.exhaustive)],
    indirect=True,
    scope="module",
)
def test_ranks_that_part_end_the_job_at_once(
    what: str, code: int, begin: str, place: str, backend: str, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(APART)
    done = launch(2, script, what, backend=backend, attempts=5)
    assert done.returncode == code, done.stderr[-4000:]
    # TensorFlow crashes now and then in a worker that ends while another one waits for it.
    assert done.stderr.count("Starting again") == done.stderr.count("was killed by SIGSEGV")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(begin)
    assert place in last
