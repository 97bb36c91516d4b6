"""Tests of `MultiWorkerMirroredStrategy` alone; the ranks' tests cover all backends."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import environment, forked, launch

from distrib.errors import EXIT_CONFIGURATION, EXIT_LOST_PEER
from distrib.launch.hosts.probe import free_ports

pytestmark = pytest.mark.slow

# Plain Keras on TensorFlow's own strategy: first as it is, then with each workaround added.
PLAIN = """
import keras, numpy as np, tensorflow as tf
from distrib.keras_compat import strategy_faults

strategy = tf.distribute.MultiWorkerMirroredStrategy()
x = np.arange(32, dtype="float32").reshape(16, 2)

def outcome():
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    try:
        model.fit(x, x[:, :1], batch_size=8, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "works"

print("as it is:", outcome())
strategy_faults.build_by_element_spec()
print("built by the element spec:", outcome())
strategy_faults.keep_results_of_steps()
print("with results kept:", outcome())
"""

TRAIN = """
import keras, numpy as np, distrib

cluster = distrib.init()
with cluster.scope():
    keras.utils.set_random_seed(cluster.rank)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(cluster.optimizer("sgd"), "mse")
x = np.arange(32, dtype="float32").reshape(16, 2) / 32
history = model.fit(cluster.dataset((x, x[:, :1]), 8), epochs=2, verbose=0).history
print(cluster.kind, cluster.rank, cluster.size, cluster.local_rank, history["loss"])
"""


def test_keras_still_needs_the_workarounds(tmp_path: Path) -> None:
    """When this fails, Keras has mended something: see `strategy_faults.py`."""
    script = tmp_path / "plain.py"
    script.write_text(PLAIN)
    done = launch(2, script, backend="multiworker")
    assert done.returncode == 0, done.stderr[-4000:]
    first, second, third = lines_of_rank_0(done.stdout)
    assert first.startswith("as it is: ValueError: Attempt to convert a value (PerReplica")
    assert second.startswith("built by the element spec: ValueError: Invalid reduction dimension")
    assert third == "with results kept: works"


def lines_of_rank_0(output: str) -> list[str]:
    return [line for line in output.splitlines() if not line.startswith("[rank 1]")]


def start(
    folder: Path, index: int, task: str, cluster: dict[str, list[str]], timeout: int = 15
) -> subprocess.Popen[str]:
    config = {"cluster": cluster, "task": {"type": task, "index": index}}
    script = folder / "train.py"
    script.write_text(TRAIN)
    return subprocess.Popen(
        forked(script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **environment(),
            "TF_CONFIG": json.dumps(config),
            "DISTRIB_START_TIMEOUT_SECONDS": str(timeout),
        },
    )


def addresses(count: int) -> list[str]:
    return [f"localhost:{port}" for port in free_ports(count)]


def test_workers_need_nothing_but_tf_config(tmp_path: Path) -> None:
    chief, *workers = addresses(2)
    cluster = {"chief": [chief], "worker": workers}
    with ExitStack() as stack:
        jobs = [start(tmp_path, 0, task, cluster) for task in ("worker", "chief")]
        for job in jobs:
            stack.callback(job.kill)
        (one, one_errors), (other, other_errors) = (job.communicate(timeout=100) for job in jobs)
    assert one.startswith("multiworker 1 2 1 ["), one_errors[-4000:]
    assert other.startswith("multiworker 0 2 0 ["), other_errors[-4000:]
    assert one.partition("[")[2] == other.partition("[")[2]


def test_waiting_for_a_missing_worker_ends_after_the_timeout(tmp_path: Path) -> None:
    job = start(tmp_path, 0, "worker", {"worker": addresses(2)}, timeout=4)
    _, errors = job.communicate(timeout=100)
    assert job.returncode == EXIT_LOST_PEER
    assert "rank 0 of 2 has waited 4 s for all of localhost:" in errors
    assert "Traceback" not in errors


def test_an_index_beyond_the_workers_is_refused(tmp_path: Path) -> None:
    job = start(tmp_path, 2, "worker", {"worker": addresses(2)})
    _, errors = job.communicate(timeout=100)
    assert job.returncode == EXIT_CONFIGURATION
    assert "its cluster has 2 of that type" in errors
