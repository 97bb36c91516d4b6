"""A JobSet, by itself or in the TrainingRuntime of a TrainJob.

Its Job fails with the first pod that fails (`backoffLimit: 0`), whatever the reason. The JobSet
reads the exit code or the condition from the failure's message, and fails or creates a new Job.
"""

from __future__ import annotations

from collections.abc import Sequence

from distrib.errors import NON_RETRYABLE, RETRYABLE, SCRIPT_ERRORS

from .pod import (
    DISRUPTED,
    JOBSET_LABEL,
    Object,
    join_command,
    pod_template,
    training_container,
)
from .settings import MAX_FAILURES, Settings


def jobset_spec(
    settings: Settings, container_name: str, labels: Object, script: Sequence[str]
) -> Object:
    """Return the spec of a JobSet.

    Args:
        settings: The job.
        container_name: Name of the container that trains.
        labels: Of the Job.
        script: The script and its arguments; empty if a TrainJob sets them.
    """
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": _failure_policy(),
        "replicatedJobs": [
            {
                "name": "node",
                "replicas": 1,
                "template": {
                    **({"metadata": {"labels": labels}} if labels else {}),
                    "spec": _job_spec(settings, _container(settings, container_name, script)),
                },
            }
        ],
    }


def _container(settings: Settings, name: str, script: Sequence[str]) -> Object:
    command = join_command(settings, "$(JOBSET_NAME)")
    container = training_container(settings, command, [*script], name)
    container["env"].insert(
        1,
        {
            "name": "JOBSET_NAME",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{JOBSET_LABEL}']"}},
        },
    )
    return container


def _failure_policy() -> Object:
    return {
        "maxRestarts": MAX_FAILURES,
        "restartStrategy": "BlockingRecreate",
        "rules": [
            {
                "name": "nonRetryable",
                "action": "FailJobSet",
                "onJobFailureMessagePatterns": [
                    f"exit code ({_any_of((*SCRIPT_ERRORS, *NON_RETRYABLE))}) "
                ],
            },
            {
                "name": "deadlineExceeded",
                "action": "FailJobSet",
                "onJobFailureReasons": ["DeadlineExceeded"],
            },
            {
                "name": "retryable",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureMessagePatterns": [
                    f"exit code ({_any_of(RETRYABLE)}) ",
                    "condition DisruptionTarget",
                ],
            },
        ],
    }


def _job_spec(settings: Settings, container: Object) -> Object:
    codes = {"operator": "In", "values": sorted((*SCRIPT_ERRORS, *NON_RETRYABLE, *RETRYABLE))}
    return {
        "completionMode": "Indexed",
        "completions": settings.completions,
        "parallelism": settings.parallelism,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "activeDeadlineSeconds": settings.deadline,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [DISRUPTED]},
                {"action": "FailJob", "onExitCodes": codes},
            ]
        },
        "template": pod_template(settings, container, JOBSET_LABEL),
    }


def _any_of(codes: Sequence[int]) -> str:
    return "|".join(map(str, sorted(codes)))
