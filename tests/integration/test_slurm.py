"""`launch/slurm.sbatch` on a real Slurm: which jobs are queued again, and how they resume."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import JOB, environment, forked, result, undisturbed
from slurm_cluster import Batch, Cluster, missing, slurm

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.storage.locate import locate

SCRIPT = str(Path(__file__).parents[2] / "launch" / "slurm.sbatch")
PLAIN = ["--backend", "multiworker"]  # Only sets TF_CONFIG, so ranks need no TensorFlow.

# Ends with the exit code on its command line; without one, waits for SIGTERM, and saves. The first
# rank takes some seconds for that.
RANK = """
import json, os, signal, sys, time
here = os.uname().nodename
first = json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0
def stop(number, frame):
    time.sleep(3 if first else 0)
    print("saved on", here, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready on", here, flush=True)
if len(sys.argv) > 1:
    sys.exit(int(sys.argv[1]))
while True:
    time.sleep(600)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def rank(tmp_path: Path) -> str:
    path = tmp_path / "rank.py"
    path.write_text(RANK)
    return str(path)


def test_a_preempted_run_comes_back_and_ends_with_the_same_weights(
    cluster: Cluster, tmp_path: Path
) -> None:
    pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")
    run, samples = tmp_path / "run", "--samples=600"
    variables = {name: environment()[name] for name in ("CUDA_VISIBLE_DEVICES",)}
    batch = cluster.submit(SCRIPT, *forked(JOB, "--run", str(run), samples), **variables)
    saved = CheckpointDirectory(locate(run, "directory"))
    batch.wait_for("saved", lambda: max(saved.steps(), default=0) >= 9)
    cluster.submit("--partition=high", "--nodes=3", "--exclusive", "--wrap=true")
    facts = batch.wait_for_state("COMPLETED", "FAILED", "TIMEOUT")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), batch.written()
    assert "asked to stop: checkpoint" in batch.written()
    assert "resuming from" in batch.written()
    assert result(run) == undisturbed(samples, ranks=2)


def test_only_retryable_exit_codes_are_queued_again(cluster: Cluster, rank: str) -> None:
    def submit(code: str, **variables: str) -> Batch:
        return cluster.submit(SCRIPT, *PLAIN, "--attempts", "0", rank, code, **variables)

    again = submit("76")
    never = {code: submit(code) for code in ("0", "1", "78")}
    often = submit("76", MAX_REQUEUES="0")
    again.wait_for("queued again", lambda: again.facts()["Restarts"] == "1")
    cluster.command("scancel", again.number)
    for code, batch in never.items():
        facts = batch.wait_for_state("COMPLETED", "FAILED")
        assert (facts["Restarts"], facts["ExitCode"]) == ("0", f"{code}:0"), batch.written()
    facts = often.wait_for_state("FAILED")
    assert (facts["Restarts"], facts["ExitCode"]) == ("0", "76:0")
    assert often.written().splitlines()[-1] == (
        "slurm.sbatch: not queued again: it was restarted 0 times already."
    )


def test_a_cancelled_job_saves_and_is_not_queued_again(cluster: Cluster, rank: str) -> None:
    batch = cluster.submit(SCRIPT, *PLAIN, rank)
    batch.wait_for_text("ready on", 2)
    cluster.command("scancel", batch.number)
    batch.wait_for_text("saved on", 2)
    facts = batch.wait_for_state("CANCELLED")
    assert facts["Restarts"] == "0"


def test_a_signal_by_hand_saves_and_queues_again(cluster: Cluster, rank: str) -> None:
    """Slurm delivers it like the signal two minutes before the time limit."""
    batch = cluster.submit(SCRIPT, *PLAIN, rank)
    batch.wait_for_text("ready on", 2)
    cluster.command("scancel", "--signal=TERM", batch.number)
    batch.wait_for_text("saved on", 2)
    batch.wait_for("queued again", lambda: batch.facts()["Restarts"] == "1")
    cluster.command("scancel", batch.number)


def test_nodes_may_have_different_numbers_of_ranks(cluster: Cluster, rank: str) -> None:
    batch = cluster.submit("--ntasks=3", "--ntasks-per-node=2", SCRIPT, *PLAIN, rank, "0")
    facts = batch.wait_for_state("COMPLETED", "FAILED")
    assert facts["JobState"] == "COMPLETED", batch.written()
    nodes = re.findall(r"ready on (h\d)", batch.written())
    assert sorted(nodes.count(node) for node in set(nodes)) == [1, 2]


def test_a_job_that_loses_a_node_resumes_on_another(
    tmp_path_factory: pytest.TempPathFactory, rank: str
) -> None:
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        batch = cluster.submit(SCRIPT, *PLAIN, rank)
        batch.wait_for_text("ready on", 2)
        assert batch.facts()["NodeList"] == "h[0-1]"
        cluster.hosts[1].kill()
        # Slurm would notice by itself, after SlurmdTimeout.
        cluster.command("scontrol", "update", "nodename=h1", "state=down", "reason=silent")
        batch.wait_for("queued again", lambda: batch.facts()["Restarts"] == "1")
        batch.wait_for("back", lambda: batch.facts()["NodeList"] == "h[0,2]")
        batch.wait_for_text("ready on h2")
        assert "ready on h1" in batch.written()  # The output of the first start is kept.
