"""SIGKILL of any rank at every kind of moment, and restarts on other numbers of ranks.

The launcher ends with 76 when a rank was killed, and the same command goes on. The weights,
optimizer states, metrics and logs of all ranks must end as those of a job that nobody disturbed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import JOB, finish, launch, result

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.errors import EXIT_LOST_PEER, EXIT_PREEMPTED

# Number of ranks: which rank dies, and where; see `job.py`.
KILLS = {
    2: [
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
    3: [(2, "in_step:5"), (0, "save_manifest:1"), (1, "epoch_begin:1"), (2, "restore_callbacks:1")],
    4: [(3, "in_step:17"), (0, "validation:2")],
}

pytestmark = pytest.mark.slow


def start(size: int, run: Path, *arguments: str) -> int:
    if size == 1:
        finish(run, *arguments)
        return 0
    done = launch(size, JOB, "--run", str(run), *arguments)
    if done.returncode not in (0, EXIT_LOST_PEER, EXIT_PREEMPTED):
        raise AssertionError(done.stderr[-4000:])
    return done.returncode


@pytest.mark.parametrize("size", KILLS)
def test_ranks_end_as_if_nothing_had_happened(size: int, tmp_path: Path) -> None:
    assert start(size, tmp_path / "calm") == 0
    for rank, kill in KILLS[size]:
        code = start(size, tmp_path / "run", "--kill-rank", str(rank), "--kill", kill)
        assert code == (EXIT_PREEMPTED if "signal" in kill else EXIT_LOST_PEER), kill
    assert start(size, tmp_path / "run") == 0
    calm = result(tmp_path / "calm")
    assert len(calm["weights"]) == size
    assert len(set(calm["weights"])) == 1
    assert len(set(map(str, calm["logs"]))) == 1
    assert result(tmp_path / "run") == calm


def test_a_job_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    """The same samples in the same global batches: what differs is the order of additions.

    In float32 one step differs by about 1e-7, and training carries that on; 1e-4 after 44 steps is
    far below what a repeated, missing or differently weighted batch would make.
    """
    run = tmp_path / "run"
    model = ["--model", "steady"]
    for size, kill in ((4, "after_step:9"), (2, "after_step:21"), (1, "signal:30")):
        killed = ["--kill", kill]
        if size == 1:
            launch_alone(run, *model, *killed)
        else:
            assert start(size, run, *model, *killed) == EXIT_LOST_PEER
    assert start(3, run, *model) == 0
    calm = finish(tmp_path / "calm", *model)
    moved = result(run)
    np.testing.assert_allclose(moved["losses"], calm["losses"], rtol=1e-4)
    for name, values in calm["history"].items():
        np.testing.assert_allclose(moved["history"][name], values, rtol=1e-4, err_msg=name)


def launch_alone(run: Path, *arguments: str) -> None:
    from harness import start as start_alone

    assert start_alone(run, *arguments).returncode == EXIT_PREEMPTED


def test_all_ranks_fall_back_together(tmp_path: Path) -> None:
    run, calm = tmp_path / "run", tmp_path / "calm"
    assert start(2, calm) == 0
    assert start(2, run, "--kill", "after_step:20") == EXIT_LOST_PEER
    newest = max(CheckpointDirectory(run).steps())
    folder = CheckpointDirectory(run).step_path(newest)
    damaged = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"garbage")
    done = launch(2, JOB, "--run", str(run))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("is damaged") == 1  # Only the chief looks at the storage.
    assert result(run) == result(calm)


def test_a_bug_on_one_rank_ends_the_job_with_its_traceback(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(BUG)
    done = launch(3, script)
    assert done.returncode == 1
    assert "ValueError: a bug on rank 1" in done.stderr
    assert done.stderr.index("ValueError: a bug") < done.stderr.index("lost another rank")
    assert done.stderr.count("lost another rank") == 2


BUG = """
import keras, numpy as np, distrib

class Bug(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if distrib.current().rank == 1 and batch == 3:
            raise ValueError("a bug on rank 1")

cluster = distrib.init()
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(cluster.optimizer("sgd"), "mse")
x = np.ones((64, 4), "float32")
model.fit(cluster.dataset((x, x[:, :1]), 4), epochs=2, verbose=0, callbacks=[Bug()])
"""


@pytest.fixture(autouse=True)
def _needs_horovod() -> Any:
    pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")
