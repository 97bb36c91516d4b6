"""`distrib run` in the pods of an Indexed Job that Kubernetes disturbs: the result is the same.

Our own manifests start the pods and judge their exit codes, in an emulated Job
(`job_controller.py`) with shorter pauses before a new pod. In each case weights and history are
those of an undisturbed run, only pods that are lost are replaced, and only their failures count.
All pods but the first one stay until the Job is complete, which ends them (75).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import hosts
import numpy as np
import pytest
from harness import JOB, forked, result, undisturbed
from job_controller import IndexedJob, indexed_job

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.launch.k8s.objects import build_objects
from distrib.launch.k8s.settings import Settings
from distrib.storage.locate import locate

pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(hosts.missing() is not None, reason=str(hosts.missing())),
]
IMAGE = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
}
SHORT = ("--epochs", "3")


class Disturbed:
    """A Job in a folder of its own."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.run = folder / "runs" / "job"

    def start(
        self,
        *arguments: str,
        pods: int = 2,
        options: Sequence[str] = (),
        scale: float = 0.05,
        **variables: str,
    ) -> IndexedJob:
        settings = Settings(
            name="job",
            image="none",
            script=forked(JOB, "--run", "$(CHECKPOINT_DIR)", *SHORT, *arguments),
            checkpoint_dir="/runs/job",
            claim="runs",
            completions=pods,
            parallelism=pods,
            environment=variables,
        )
        manifests = build_objects(settings)
        manifests[-1]["spec"]["template"]["spec"]["containers"][0]["command"] += options
        return self._stack.enter_context(indexed_job(self._folder, manifests, IMAGE, scale))

    def reaches(self, step: int) -> Callable[[], bool]:
        """Return a function that tells whether the checkpoint of a step, or a later one, exists."""
        checkpoints = CheckpointDirectory(locate(self.run, "directory"))
        return lambda: max(checkpoints.steps(), default=0) >= step


@pytest.fixture
def disturbed(tmp_path: Path) -> Iterator[Disturbed]:
    with ExitStack() as stack:
        yield Disturbed(stack, tmp_path)


def test_another_host_and_then_the_coordinator_are_evicted(disturbed: Disturbed) -> None:
    job = disturbed.start()
    job.until(disturbed.reaches(6))
    job.evict(1)
    job.until(lambda: job.codes[1])
    job.until(disturbed.reaches(15))
    job.evict(0)
    job.finish()
    assert job.codes == {0: [75, 0], 1: [75, 75]}, job.describe()
    assert (job.condition, job.failed, job.ignored) == ("Complete", {}, {0: 1, 1: 1})
    assert result(disturbed.run) == undisturbed(*SHORT, ranks=2)


def test_ranks_and_pods_that_are_killed_for_memory(disturbed: Disturbed) -> None:
    job = disturbed.start()
    job.until(disturbed.reaches(6))
    (rank,) = job.pods[1].processes("nursery.py")  # It was forked from that script.
    os.kill(rank, signal.SIGKILL)
    job.until(lambda: "was killed by SIGKILL. Starting again" in job.pods[0].log)
    job.until(disturbed.reaches(15))
    assert job.codes == {0: [], 1: []}
    job.pods[1].send(signal.SIGKILL)
    job.finish()
    assert job.codes == {0: [0], 1: [137, 75]}, job.describe()
    assert (job.condition, job.failed, job.ignored) == ("Complete", {1: 1}, {})
    assert result(disturbed.run) == undisturbed(*SHORT, ranks=2)


def test_a_network_fails_for_a_while_and_a_node_for_good(disturbed: Disturbed) -> None:
    job = disturbed.start(pods=3, HOROVOD_GLOO_TIMEOUT_SECONDS="5")
    job.until(disturbed.reaches(6))
    job.pods[1].cut()
    job.lose_node(2)
    # The connections are given up and no host joins; all pods are still running.
    job.until(lambda: "waiting for hosts" in job.pods[0].log.partition("Starting again")[2])
    assert job.codes == {0: [], 1: [], 2: []}
    job.pods[1].mend()
    lost = job.delete_node(2)
    job.finish()
    assert job.codes == {0: [0], 1: [75], 2: [None, 75]}, job.describe()
    assert (job.condition, job.failed, job.ignored) == ("Complete", {}, {2: 1})
    job.find_node(lost)
    job.until(lambda: lost.exit_code is not None)
    assert result(disturbed.run) == undisturbed(*SHORT, ranks=3)


def test_two_of_three_nodes_are_drained(disturbed: Disturbed) -> None:
    job = disturbed.start(pods=3)
    job.until(disturbed.reaches(6))
    job.evict(0, 1)
    job.finish()
    assert job.codes == {0: [75, 0], 1: [75, 75], 2: [75]}, job.describe()
    assert (job.condition, job.failed, job.ignored) == ("Complete", {}, {0: 1, 1: 1})
    assert result(disturbed.run) == undisturbed(*SHORT, ranks=3)


def test_both_pods_are_evicted_at_the_very_end(disturbed: Disturbed) -> None:
    job = disturbed.start()
    job.until(lambda: (disturbed.run / "result.json").exists())
    job.evict(0, 1)
    job.finish()
    assert (job.condition, job.failed) == ("Complete", {}), job.describe()
    assert result(disturbed.run) == undisturbed(*SHORT, ranks=2)


def test_two_of_three_pods_are_lost_after_the_job_has_finished(disturbed: Disturbed) -> None:
    job = disturbed.start(pods=3)
    job.until(disturbed.reaches(6))
    job.pods[0].send(signal.SIGSTOP)  # Process 1, and not the supervisor that is its child.
    job.until(lambda: all("the job has finished" in job.pods[n].log for n in (1, 2)))
    job.evict(1)
    job.pods[0].send(signal.SIGKILL)
    job.finish()
    assert job.codes == {0: [137, 0], 1: [75, 75], 2: [75]}, job.describe()
    assert (job.condition, job.failed, job.ignored) == ("Complete", {0: 1}, {1: 1})
    assert result(disturbed.run) == undisturbed(*SHORT, ranks=3)


def test_a_bug_fails_the_job_after_some_attempts(disturbed: Disturbed) -> None:
    job = disturbed.start("--kill", "bug:2", options=["--attempts=2"])
    job.finish()
    assert (job.condition, job.codes) == ("Failed", {0: [70], 1: [70]}), job.describe()
    assert job.reason.endswith("ended with 70")
    assert "ValueError: a bug in step 2" in job.pods[0].log
    assert "given up: two attempts in a row" in job.pods[0].log


def test_wrong_configuration_fails_the_job_at_once(disturbed: Disturbed) -> None:
    job = disturbed.start("--save-freq", "5 parsecs")
    job.finish()
    assert (job.condition, job.codes) == ("Failed", {0: [78], 1: [78]}), job.describe()
    assert "5 parsecs" in job.pods[0].log


def test_the_job_continues_with_fewer_pods_and_grows_again(disturbed: Disturbed) -> None:
    """The same samples in the same global batches; what differs is the order of additions."""
    steady = ["--model", "steady", "--epochs", "20", "--patience", "1000"]
    few = ["--min-np=1", "--join-timeout=8"]  # Shorter than a pod is away.
    job = disturbed.start(*steady, options=few, scale=1.2)
    job.until(disturbed.reaches(6))
    job.evict(1)
    job.until(lambda: "going on with 1 of 2 ranks, on job-0" in job.pods[0].log)
    first = job.pods[1]
    job.until(lambda: job.pods[1] is not first and "joined" in job.pods[1].log)
    (rank,) = job.pods[0].processes("nursery.py")
    os.kill(rank, signal.SIGKILL)
    job.finish()
    assert job.codes == {0: [0], 1: [75, 75]}, job.describe()
    assert job.pods[0].log.count("going on with") == 1
    calm, changed = undisturbed(*steady), result(disturbed.run)
    assert len(changed["weights"]) == 2
    np.testing.assert_allclose(changed["losses"], calm["losses"], rtol=1e-4)
