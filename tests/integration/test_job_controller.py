"""The emulated Job treats pods as Kubernetes does; the pods run a few lines of shell."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hosts
import pytest
from job_controller import IndexedJob

pytestmark = pytest.mark.skipif(hosts.missing() is not None, reason=str(hosts.missing()))

RULES = [
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [78]}},
    {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [75]}},
]
# Ends with 75 on SIGTERM, and has one more process.
POLITE = "trap 'exit 75' TERM; sleep 600 & echo ready; touch ready; wait; exit 1"
# The other pod waits until that one is ready.
UNTIL_READY = "if [ $(hostname) = job-0 ]; then until [ -e ready ]; do sleep 0.05; done; "

Start = Callable[..., IndexedJob]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(script: str, scale: float = 0.0, **changes: Any) -> IndexedJob:
            command = ["sh", "-c", f"cd {tmp_path}; {script}"]
            container = {"name": "main", "command": command}
            pod = {
                "subdomain": "jobs",
                "terminationGracePeriodSeconds": changes.pop("grace", 60),
                "containers": [container],
            }
            spec = {
                "completionMode": "Indexed",
                "completions": 2,
                "backoffLimitPerIndex": 2,
                "maxFailedIndexes": 0,
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": {"rules": RULES},
                "template": {"spec": pod},
                **changes,
            }
            job = {"kind": "Job", "metadata": {"name": "job"}, "spec": spec}
            return IndexedJob(stack, tmp_path, [job], {"PATH": os.environ["PATH"]}, scale)

        yield begin


def ready(job: IndexedJob) -> Callable[[], bool]:
    return lambda: len(job.pods) == 2 and all("ready" in pod.log for pod in job.pods.values())


def test_a_job_is_complete_when_all_pods_have_finished(start: Start) -> None:
    job = start("hostname; exit 0")
    job.finish()
    assert (job.condition, job.codes) == ("Complete", {0: [0], 1: [0]})
    assert [pod.log for pod in job.pods.values()] == ["job-0\n", "job-1\n"]


def test_a_job_is_complete_when_its_success_policy_is_met(start: Start) -> None:
    success = {"rules": [{"succeededIndexes": "0"}]}
    job = start(f"{UNTIL_READY} exit 0; fi; {POLITE}", successPolicy=success)
    job.finish()
    assert (job.condition, job.codes) == ("Complete", {0: [0], 1: [75]})


def test_an_eviction_costs_nothing_and_gives_a_new_address(start: Start) -> None:
    job = start(POLITE)
    job.until(ready(job))
    before = job.pods[1]
    job.evict(1)
    job.until(lambda: job.pods[1] is not before)
    assert (job.codes, job.ignored, job.failed) == ({0: [], 1: [75]}, {1: 1}, {})
    assert job.pods[1].address != before.address
    names = (job.pods[0].folder / "hosts").read_text()
    assert f"{job.pods[1].address} job-1.jobs" in names
    assert before.address not in names


def test_a_pod_that_ignores_sigterm_is_killed_after_the_grace_period(start: Start) -> None:
    job = start("sleep 600 & echo ready; wait", grace=0.2)
    job.until(ready(job))
    job.delete(1)
    job.until(lambda: job.codes[1])
    assert (job.codes[1], job.ignored, job.failed) == ([137], {}, {1: 1})


def test_one_failure_too_many_fails_the_job(start: Start) -> None:
    job = start(f"{UNTIL_READY} exit 3; fi; {POLITE}")
    job.finish()
    assert (job.condition, job.reason) == ("Failed", "MaxFailedIndexesExceeded")
    assert job.codes == {0: [3, 3, 3], 1: [75]}


def test_ignored_failures_never_fail_the_job(start: Start) -> None:
    job = start("exit 75")
    job.until(lambda: len(job.codes[0]) > 4)
    assert (job.condition, job.failed) == (None, {})


def test_a_rule_fails_the_job_and_the_other_pods_are_deleted(start: Start) -> None:
    job = start(f"{UNTIL_READY} exit 78; fi; {POLITE}")
    job.finish()
    assert (job.condition, job.reason) == ("Failed", "PodFailurePolicy: pod 0 ended with 78")
    assert job.codes == {0: [78], 1: [75]}


def test_a_pod_on_a_lost_node_has_no_replacement_until_the_node_is_deleted(start: Start) -> None:
    job = start(POLITE)
    job.until(ready(job))
    lost = job.pods[1]
    job.lose_node(1)
    job.evict(0)
    job.until(lambda: len(job.codes[0]) == 1 and not job.pods[0].ended)
    assert job.pods[1] is lost
    job.delete_node(1)
    job.until(lambda: job.pods[1] is not lost)
    assert (job.ignored, job.failed) == ({0: 1, 1: 1}, {})
    assert lost.exit_code is None
    job.find_node(lost)
    job.until(lambda: lost.exit_code == 75)
    assert job.codes == {0: [75], 1: [None]}


def test_pods_reach_each_other_by_name(start: Start) -> None:
    listen = "import socket; socket.create_server(('', 7600)).accept()[0].sendall(b'hello')"
    ask = "import socket; socket.create_connection(('job-0.jobs', 7600), 60)"
    job = start(
        f"""if [ $(hostname) = job-0 ]; then exec {sys.executable} -c "{listen}"; fi
until {sys.executable} -c "{ask}.recv(5)" 2> /dev/null; do sleep 0.05; done"""
    )
    job.finish()
    assert (job.condition, job.codes) == ("Complete", {0: [0], 1: [0]})
