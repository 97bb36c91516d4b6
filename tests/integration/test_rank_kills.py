"""SIGKILL of any rank at every kind of moment, and restarts on other ranks and backends.

The launcher ends with 76 when a rank was killed, and the same command resumes the job. The final
weights, optimizer states, metrics and logs of all ranks must be those of an undisturbed job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import JOB, KILLED, launch, result, undisturbed
from harness import start as start_alone

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.errors import (
    EXIT_CONFIGURATION,
    EXIT_LOST_PEER,
    EXIT_NO_PROGRESS,
    EXIT_PREEMPTED,
    RETRYABLE,
)
from distrib.storage.locate import locate

# By backend and number of ranks: which rank is killed, and where; see `job.py`.
KILLS = {
    ("horovod", 2): [
        (1, "before_step:2"),
        (0, "save_uncommitted:2"),
        (1, "in_step:10"),
        (1, "signal:14"),
        (0, "restore_weights:1"),
        (1, "validation:1"),
        (0, "epoch_end:2"),
        (1, "signal_in_validation:2"),
        (1, "train_end:0"),
    ],
    ("horovod", 3): [
        (2, "in_step:5"),
        (0, "save_manifest:1"),
        (1, "epoch_begin:1"),
        (2, "restore_callbacks:1"),
    ],
    ("horovod", 4): [(3, "in_step:17"), (0, "validation:2")],
    ("multiworker", 2): [
        (1, "before_step:3"),
        (0, "in_step:9"),
        (1, "signal:12"),
        (0, "save_uncommitted:1"),
        (1, "validation:1"),
        (1, "restore_callbacks:1"),
        (0, "epoch_end:2"),
    ],
}

# Backends and numbers of ranks that continue one run, each until the chief is killed. The steps of
# the two mirrored replicas exclude an epoch's last batch: Keras weighs uneven parts equally.
MOVES = [
    ("horovod", 4, "after_step:7"),
    ("multiworker", 2, "after_step:15"),
    ("local", 1, "after_step:27"),
    ("mirrored", 1, "after_step:32"),
    ("horovod", 3, "after_step:38"),
    ("multiworker", 2, None),
]

pytestmark = pytest.mark.slow


def start(backend: str, size: int, run: Path, *arguments: str) -> int:
    """Run the job once; return its exit code: of a finish, a kill or a request to stop."""
    if size == 1:
        done = start_alone(run, "--backend", backend, *arguments)
    else:
        done = launch(size, JOB, "--run", str(run), *arguments, backend=backend)
    if done.returncode not in (0, KILLED, *RETRYABLE):
        raise AssertionError(done.stderr[-4000:])
    return done.returncode


# `test_kubernetes_job.py` and `test_chaos.py` kill three ranks as well.
@pytest.mark.parametrize(
    ("backend", "size"),
    [
        ("horovod", 2),
        ("multiworker", 2),
        pytest.param("horovod", 3, marks=pytest.mark.exhaustive),
        pytest.param("horovod", 4, marks=pytest.mark.exhaustive),
    ],
)
def test_killed_ranks_resume_exactly(backend: str, size: int, tmp_path: Path) -> None:
    for rank, kill in KILLS[backend, size]:
        killed = ["--kill-rank", str(rank), "--kill", kill]
        code = start(backend, size, tmp_path / "run", *killed)
        assert code == (EXIT_PREEMPTED if "signal" in kill else EXIT_LOST_PEER), kill
    assert start(backend, size, tmp_path / "run") == 0
    calm = undisturbed(ranks=size, backend=backend)
    assert len(calm["weights"]) == size
    assert len(set(calm["weights"])) == 1
    assert len(set(map(str, calm["logs"]))) == 1
    assert result(tmp_path / "run") == calm


@pytest.mark.exhaustive
def test_killed_ranks_resume_exactly_on_arrays(backend: str, tmp_path: Path) -> None:
    for rank, kill in KILLS[backend, 2]:
        killed = ["--arrays", "--kill-rank", str(rank), "--kill", kill]
        code = start(backend, 2, tmp_path / "run", *killed)
        assert code == (EXIT_PREEMPTED if "signal" in kill else EXIT_LOST_PEER), kill
    assert start(backend, 2, tmp_path / "run", "--arrays") == 0
    # The same as on a `cluster.dataset`.
    assert result(tmp_path / "run") == undisturbed(ranks=2, backend=backend)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("backend", "model"),
    [
        ("horovod", "two_optimizers"),
        ("horovod", "jit"),
        ("horovod", "jit_mixed_precision"),
        ("horovod", "jit_accumulation"),
        ("multiworker", "mixed_precision"),
        ("multiworker", "jit"),
    ],
)
def test_other_models_resume_exactly(backend: str, model: str, tmp_path: Path) -> None:
    how = ["--model", model, "--order", "7"]
    killed = ["--kill-rank", "1", "--kill", "after_step:20"]
    assert start(backend, 2, tmp_path / "run", *how, *killed) == EXIT_LOST_PEER
    assert start(backend, 2, tmp_path / "run", *how) == 0
    assert result(tmp_path / "run") == undisturbed(*how, ranks=2, backend=backend)


@pytest.mark.exhaustive
def test_a_job_turns_xla_on_and_off(backend: str, tmp_path: Path) -> None:
    for model, kill in (("steady", "after_step:12"), ("steady_jit", "after_step:25")):
        code = start(backend, 2, tmp_path / "run", "--model", model, "--kill", kill)
        assert code == EXIT_LOST_PEER
    assert start(backend, 2, tmp_path / "run", "--model", "steady") == 0
    calm = undisturbed("--model", "steady", ranks=2, backend=backend)
    np.testing.assert_allclose(result(tmp_path / "run")["losses"], calm["losses"], rtol=1e-4)


def test_a_job_moves_to_other_ranks_and_backends(tmp_path: Path) -> None:
    """The samples and global batches are the same; only the order of additions differs.

    In float32 one step differs by about 1e-7, which training accumulates; 1e-4 after 44 steps is
    far below the effect of a repeated, missing or differently weighted batch.
    """
    run = tmp_path / "run"
    model = ["--model", "steady"]
    for backend, size, kill in MOVES:
        killed = [] if kill is None else ["--kill", kill]
        expected = 0 if kill is None else KILLED if size == 1 else EXIT_LOST_PEER
        assert start(backend, size, run, *model, *killed) == expected
    calm = undisturbed(*model)
    moved = result(run)
    np.testing.assert_allclose(moved["losses"], calm["losses"], rtol=1e-4)
    for name, values in calm["history"].items():
        np.testing.assert_allclose(moved["history"][name], values, rtol=1e-4, err_msg=name)


def test_all_ranks_fall_back_together(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert start("horovod", 2, run, "--kill", "after_step:20") == EXIT_LOST_PEER
    newest = max(CheckpointDirectory(locate(run, "directory")).steps())
    folder = run / "checkpoints" / str(newest)
    damaged = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"garbage")
    done = launch(2, JOB, "--run", str(run))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("is damaged") == 1  # Only the chief reads the storage.
    assert result(run) == undisturbed(ranks=2)


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_a_save_that_fails_ends_all_ranks_at_the_next_step(backend: str, tmp_path: Path) -> None:
    arguments = ["--run", str(tmp_path / "run")]
    done = launch(2, JOB, *arguments, "--kill", "save_fails:2", backend=backend)
    assert done.returncode == 1, done.stderr[-4000:]
    assert "Could not write the checkpoint of step 3" in done.stderr
    assert "The checkpoint of step 0 is intact" in done.stderr
    assert "lost another rank" not in done.stderr
    steps = CheckpointDirectory(locate(tmp_path / "run", "directory")).steps()
    assert steps == [0]
    done = launch(2, JOB, *arguments, backend=backend)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_a_bug_on_one_rank_ends_the_job_with_its_traceback(backend: str, tmp_path: Path) -> None:
    done = launch(3, script(tmp_path, BUG), backend=backend)
    assert done.returncode == 1
    assert "ValueError: a bug on rank 1" in done.stderr
    assert done.stderr.index("ValueError: a bug") < done.stderr.index("lost another rank")
    assert done.stderr.count("lost another rank") == 2


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_a_rank_that_runs_out_of_data_ends_the_job(backend: str, tmp_path: Path) -> None:
    done = launch(2, script(tmp_path, SHORT), backend=backend)
    assert done.returncode == EXIT_CONFIGURATION
    assert "Rank 1 ran out of data in epoch 1 after 3 of 8 batches" in done.stderr
    assert done.stderr.count("lost another rank") == 1


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_evaluating_on_the_chief_alone_is_an_error(backend: str, tmp_path: Path) -> None:
    done = launch(2, script(tmp_path, ALONE), backend=backend)
    assert done.returncode == EXIT_NO_PROGRESS
    last = done.stderr.splitlines()[-1]
    assert ": `model.evaluate(cluster.dataset((x, x[:, :1]), 8), verbose=0)`" in last
    assert "All ranks must train to the end, and make the same calls" in last


def script(folder: Path, training: str) -> Path:
    path = folder / "train.py"
    path.write_text(START + training)
    return path


START = """
import keras, numpy as np, tensorflow as tf, distrib

cluster = distrib.init()
with cluster.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(cluster.optimizer("sgd"), "mse")
x = np.ones((64, 4), "float32")
"""

BUG = """
class Bug(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if cluster.rank == 1 and batch == 3:
            raise ValueError("a bug on rank 1")

model.fit(cluster.dataset((x, x[:, :1]), 4), epochs=2, verbose=0, callbacks=[Bug()])
"""

SHORT = """
data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8).take(3 if cluster.rank else 8)
model.fit(data.filter(lambda x, y: True), steps_per_epoch=8, verbose=0)
"""


ALONE = """
model.fit(cluster.dataset((x, x[:, :1]), 8), verbose=0)
if cluster.is_chief:
    model.evaluate(cluster.dataset((x, x[:, :1]), 8), verbose=0)
"""


@pytest.fixture(autouse=True)
def _needs_horovod() -> Any:
    pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")
