"""From a job's settings to the objects of Kubernetes, as plain dictionaries.

Whoever runs the pods, the exit codes mean the same: 64, 65, 70 and 78 are for a person and end the
job; 75 and 76 mean that the job goes on from its last checkpoint, and cost nothing; the others are
failures, of which there may be a few.
"""

from __future__ import annotations

from collections.abc import Sequence

from distrib.errors import NON_RETRYABLE, RETRYABLE

from ..hosts.protocol import PORT
from .mpi import mpi_job
from .pod import (
    JOB_LABEL,
    JOBSET_LABEL,
    LABELS,
    MPIJOB_LABEL,
    Object,
    joining,
    pod_template,
    training_container,
)
from .settings import JOB, JOBSET, MPIJOB, TRAINJOB, Settings

FAILURES_OF_A_POD = 6
# What all pods of the job have, and no other pod of the namespace.
LABEL_OF = {
    JOB: JOB_LABEL,
    JOBSET: JOBSET_LABEL,
    TRAINJOB: JOBSET_LABEL,
    MPIJOB: MPIJOB_LABEL,
}
# Clouds answer questions about the machine, and hand out credentials, at link-local addresses.
LINK_LOCAL = "169.254.0.0/16"
LINK_LOCAL_PORTS = (80, 988)


def objects(settings: Settings) -> list[Object]:
    """Return all objects of a job, in an order in which they can be made."""
    makers = {JOB: _job, JOBSET: _jobset, TRAINJOB: _train_job, MPIJOB: _mpi_job}
    found = [
        {**_head(settings, "v1", "ServiceAccount"), "automountServiceAccountToken": False},
        {**_head(settings, "v1", "ConfigMap"), "data": _configuration(settings)},
        {
            **_head(settings, "networking.k8s.io/v1", "NetworkPolicy"),
            "spec": _network_policy(settings),
        },
    ]
    if settings.claim is not None and settings.storage is not None:
        found.append(_claim(settings, settings.claim, settings.storage))
    return found + makers[settings.variant](settings)


def _head(settings: Settings, version: str, kind: str, **labels: str) -> Object:
    metadata: Object = {"name": settings.name, "labels": {**LABELS, **labels}}
    if settings.namespace is not None:
        metadata["namespace"] = settings.namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _workload(settings: Settings, version: str, kind: str) -> Object:
    """Return the head of what a user waits for, and Kueue admits."""
    head = _head(settings, version, kind)
    if settings.queue is not None:
        prefix = "kueue.x-k8s.io/"
        head["metadata"]["labels"] |= {
            f"{prefix}queue-name": settings.queue,
            f"{prefix}max-exec-time-seconds": str(settings.deadline),
        }
        if settings.priority is not None:
            head["metadata"]["labels"][f"{prefix}priority-class"] = settings.priority
    return head


def _configuration(settings: Settings) -> Object:
    return {
        "RANKS": str(settings.ranks),
        "SLOTS": str(settings.slots),
        "CHECKPOINT_DIR": settings.checkpoint_dir,
        **settings.environment,
    }


def _network_policy(settings: Settings) -> Object:
    own = {"podSelector": {"matchLabels": {LABEL_OF[settings.variant]: settings.name}}}
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    egress: list[Object] = [{"to": [own]}, {"ports": dns}]
    if settings.ports:
        egress.append({"ports": [{"protocol": "TCP", "port": port} for port in settings.ports]})
    if settings.is_remote or settings.spot is not None:
        ports = [{"protocol": "TCP", "port": port} for port in LINK_LOCAL_PORTS]
        egress.append({"to": [{"ipBlock": {"cidr": LINK_LOCAL}}], "ports": ports})
    return {
        **own,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [own]}],
        "egress": egress,
    }


def _claim(settings: Settings, name: str, size: str) -> Object:
    claim = _head(settings, "v1", "PersistentVolumeClaim")
    claim["metadata"]["name"] = name
    claim["spec"] = {
        "accessModes": [settings.access_mode],
        "resources": {"requests": {"storage": size}},
    }
    return claim


def _job(settings: Settings) -> list[Object]:
    # That it is done shows in pod 0's exit code, which a node that is lost may not live to report.
    command = [*joining(settings, "$(JOB_NAME)"), "--linger"]
    container = training_container(settings, command, [*settings.script])
    service = {
        **_head(settings, "v1", "Service"),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {JOB_LABEL: settings.name},
            "ports": [{"name": "join", "port": PORT}],
        },
    }
    job = {
        **_workload(settings, "batch/v1", "Job"),
        "spec": {
            "completionMode": "Indexed",
            "completions": settings.completions,
            "parallelism": settings.parallelism,
            "backoffLimitPerIndex": FAILURES_OF_A_POD,
            "maxFailedIndexes": 0,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": settings.deadline,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [_DISRUPTED]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"operator": "In", "values": list(NON_RETRYABLE)},
                    },
                    {
                        "action": "Ignore",
                        "onExitCodes": {"operator": "In", "values": list(RETRYABLE)},
                    },
                ]
            },
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "template": pod_template(settings, container, JOB_LABEL, settings.name),
        },
    }
    return [service, job]


_DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


def _jobset_spec(settings: Settings, container_name: str, labels: Object) -> Object:
    """Return what a JobSet is, by itself or in a TrainingRuntime.

    Its Job ends at the first failure, and says in its message how; from that the JobSet tells
    whether to make a new one.
    """
    script = [] if labels else [*settings.script]
    command = joining(settings, "$(JOBSET_NAME)")
    container = training_container(settings, command, script, container_name)
    container["env"].insert(
        1,
        {
            "name": "JOBSET_NAME",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{JOBSET_LABEL}']"}},
        },
    )
    codes = {"operator": "In", "values": sorted(NON_RETRYABLE + RETRYABLE)}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": FAILURES_OF_A_POD,
            "restartStrategy": "BlockingRecreate",
            "rules": [
                {
                    "name": "forAPerson",
                    "action": "FailJobSet",
                    "onJobFailureMessagePatterns": [f"exit code ({_any(NON_RETRYABLE)}) "],
                },
                {
                    "name": "tooLate",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["DeadlineExceeded"],
                },
                {
                    "name": "again",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    "onJobFailureMessagePatterns": [
                        f"exit code ({_any(RETRYABLE)}) ",
                        "condition DisruptionTarget",
                    ],
                },
            ],
        },
        "replicatedJobs": [
            {
                "name": "node",
                "replicas": 1,
                "template": {
                    **({"metadata": {"labels": labels}} if labels else {}),
                    "spec": {
                        "completionMode": "Indexed",
                        "completions": settings.completions,
                        "parallelism": settings.parallelism,
                        "backoffLimit": 0,
                        "podReplacementPolicy": "Failed",
                        "activeDeadlineSeconds": settings.deadline,
                        "podFailurePolicy": {
                            "rules": [
                                {"action": "FailJob", "onPodConditions": [_DISRUPTED]},
                                {"action": "FailJob", "onExitCodes": codes},
                            ]
                        },
                        "template": pod_template(settings, container, JOBSET_LABEL),
                    },
                },
            }
        ],
    }


def _any(codes: Sequence[int]) -> str:
    return "|".join(map(str, codes))


def _jobset(settings: Settings) -> list[Object]:
    head = _workload(settings, "jobset.x-k8s.io/v1alpha2", "JobSet")
    return [{**head, "spec": _jobset_spec(settings, "train", {})}]


def _train_job(settings: Settings) -> list[Object]:
    version = "trainer.kubeflow.org/v1alpha1"
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    runtime = {
        **_head(settings, version, "TrainingRuntime"),
        "spec": {
            "mlPolicy": {"numNodes": settings.parallelism},
            "template": {"spec": _jobset_spec(settings, "node", step)},
        },
    }
    train_job = {
        **_workload(settings, version, "TrainJob"),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": settings.name,
            },
            "trainer": {"numNodes": settings.parallelism, "args": [*settings.script]},
        },
    }
    return [runtime, train_job]


def _mpi_job(settings: Settings) -> list[Object]:
    return [{**_workload(settings, "kubeflow.org/v2beta1", "MPIJob"), **mpi_job(settings)}]
