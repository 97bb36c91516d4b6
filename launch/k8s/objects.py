"""Makes the Kubernetes objects of a job from its settings, as dictionaries.

Exit codes have the same effect in all variants. A non-retryable code (64, 65, 70, 78) fails the
job, and so does an error of the script (1, 2): `distrib run` ends with one only if a restart does
not mend it. After a retryable code (75, 76) the job resumes from its last checkpoint, and no
failure is counted. Other codes count as failures, of which `MAX_FAILURES` are allowed.
"""

from __future__ import annotations

from distrib.errors import NON_RETRYABLE, RETRYABLE, SCRIPT_ERRORS

from ..hosts.protocol import PORT
from .jobset import jobset_spec
from .mpi_job import mpi_job_spec
from .pod import (
    DISRUPTED,
    JOB_LABEL,
    JOBSET_LABEL,
    LABELS,
    MPIJOB_LABEL,
    Object,
    join_command,
    pod_template,
    training_container,
)
from .settings import JOB, JOBSET, MAX_FAILURES, MPIJOB, TRAINJOB, Settings

# The label that has the same value for all pods of the job, and for no other pod of the namespace.
JOB_LABELS = {
    JOB: JOB_LABEL,
    JOBSET: JOBSET_LABEL,
    TRAINJOB: JOBSET_LABEL,
    MPIJOB: MPIJOB_LABEL,
}
# Clouds serve metadata of the machine, and credentials, at link-local addresses.
LINK_LOCAL = "169.254.0.0/16"
LINK_LOCAL_PORTS = (80, 988)


def build_objects(settings: Settings) -> list[Object]:
    """Return all objects of a job, in an order in which they can be created."""
    builders = {JOB: _job, JOBSET: _jobset, TRAINJOB: _train_job, MPIJOB: _mpi_job}
    found = [
        {**_head(settings, "v1", "ServiceAccount"), "automountServiceAccountToken": False},
        {**_head(settings, "v1", "ConfigMap"), "data": _config_data(settings)},
        {
            **_head(settings, "networking.k8s.io/v1", "NetworkPolicy"),
            "spec": _network_policy(settings),
        },
    ]
    if settings.claim is not None and settings.storage is not None:
        found.append(_claim(settings, settings.claim, settings.storage))
    return found + builders[settings.variant](settings)


def _head(settings: Settings, version: str, kind: str, **labels: str) -> Object:
    metadata: Object = {"name": settings.name, "labels": {**LABELS, **labels}}
    if settings.namespace is not None:
        metadata["namespace"] = settings.namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _workload(settings: Settings, version: str, kind: str) -> Object:
    """Return the head of the object that runs the pods, and that Kueue admits."""
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


def _config_data(settings: Settings) -> Object:
    return {
        "RANKS": str(settings.ranks),
        "SLOTS": str(settings.slots),
        "CHECKPOINT_DIR": settings.checkpoint_dir,
        **settings.environment,
    }


def _network_policy(settings: Settings) -> Object:
    own = {"podSelector": {"matchLabels": {JOB_LABELS[settings.variant]: settings.name}}}
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
    # The Job succeeds by the exit code of pod 0, which a lost node does not report. The others
    # linger for a replacement of pod 0.
    command = [*join_command(settings, "$(JOB_NAME)"), "--linger"]
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
            "backoffLimitPerIndex": MAX_FAILURES,
            "maxFailedIndexes": 0,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": settings.deadline,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [DISRUPTED]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "operator": "In",
                            "values": sorted((*SCRIPT_ERRORS, *NON_RETRYABLE)),
                        },
                    },
                    {
                        "action": "Ignore",
                        "onExitCodes": {"operator": "In", "values": sorted(RETRYABLE)},
                    },
                ]
            },
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "template": pod_template(settings, container, JOB_LABEL, settings.name),
        },
    }
    return [service, job]


def _jobset(settings: Settings) -> list[Object]:
    head = _workload(settings, "jobset.x-k8s.io/v1alpha2", "JobSet")
    return [{**head, "spec": jobset_spec(settings, "train", {}, settings.script)}]


def _train_job(settings: Settings) -> list[Object]:
    version = "trainer.kubeflow.org/v1alpha1"
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    runtime = {
        **_head(settings, version, "TrainingRuntime"),
        "spec": {
            "mlPolicy": {"numNodes": settings.parallelism},
            "template": {"spec": jobset_spec(settings, "node", step, [])},
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
    head = _workload(settings, "kubeflow.org/v2beta1", "MPIJob")
    return [{**head, "spec": mpi_job_spec(settings)}]
