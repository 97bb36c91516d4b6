"""The pod of a job: its command, its permissions, and the nodes where it may run.

The command starts as the container's first process, without a shell, so that SIGTERM reaches it.
The pod writes only to /tmp, /dev/shm and the run's volume, and follows Kubernetes' "restricted"
profile.
"""

from __future__ import annotations

from typing import Any

from distrib.environment import GRACE_VARIABLE, NOTICES_VARIABLE

from ..hosts.protocol import PORT, TOKEN_VARIABLE
from .settings import GRACE_MARGIN_SECONDS, MOUNT_PATH, Settings

Object = dict[str, Any]

HEARTBEAT_FILE = "/tmp/heartbeat"
# The supervisor touches the file every second, and somewhat later while it queries hosts.
HEARTBEAT_MINUTES = 3
LOST_NODE_SECONDS = 60  # Kubernetes' default is 300.
TOKEN_SECRET = "distrib-join-token"
STORE_SECRET = "distrib-object-store"
LABELS = {"app.kubernetes.io/name": "distrib"}
JOB_LABEL = "batch.kubernetes.io/job-name"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
MPIJOB_LABEL = "training.kubeflow.org/job-name"
GPU = "nvidia.com/gpu"
# Condition of a pod that is evicted or preempted, or whose node is drained or lost.
DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


def join_command(settings: Settings, service: str) -> list[str]:
    """Return the command of a pod that joins the others at the first one.

    Args:
        settings: The job.
        service: Name of the headless Service.
    """
    address = f"--join=$(JOB_NAME)-0.{service}:{PORT}"
    options = ["--num-proc=$(RANKS)", "--slots=$(SLOTS)", *rank_options(settings)]
    return ["distrib", "run", address, *options, *kubernetes_options(settings)]


def rank_options(settings: Settings) -> list[str]:
    """Return the options of `distrib run` for the ranks, where they differ from its defaults."""
    options = []
    if settings.min_replicas is not None:
        options.append(f"--min-np={settings.min_replicas * settings.slots}")
    if settings.backend != "horovod":
        options.append(f"--backend={settings.backend}")
    return options


def kubernetes_options(settings: Settings) -> list[str]:
    """Return the options of `distrib run` for the replacement of pods and the liveness probe."""
    return [f"--join-timeout={settings.join_timeout}", f"--heartbeat-file={HEARTBEAT_FILE}"]


def pod_template(
    settings: Settings, container: Object, job_label: str, subdomain: str | None = None
) -> Object:
    """Return the template of a job's pods.

    Args:
        settings: The job.
        container: Of the pod, as `training_container` returns it.
        job_label: Key of the label whose value is the same for all pods of this job only.
        subdomain: Headless Service that gives pods their names. Defaults to `None`, for controllers
            that set it.
    """
    same_job = {"labelSelector": {"matchLabels": LABELS}, "matchLabelKeys": [job_label]}
    zone = {"weight": 100, "podAffinityTerm": {"topologyKey": "topology.kubernetes.io/zone"}}
    zone["podAffinityTerm"] |= same_job  # type: ignore[operator]
    spec: Object = {
        **({"subdomain": subdomain} if subdomain else {}),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": settings.grace,
        "serviceAccountName": settings.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                **same_job,
            }
        ],
        "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [zone]}},
        "tolerations": tolerations(settings),
        "containers": [container],
        "volumes": volumes(settings),
    }
    if settings.spot is not None:
        spec["nodeSelector"] = _SPOT_NODES[settings.spot]
    return {"metadata": {"labels": LABELS}, "spec": spec}


def training_container(
    settings: Settings, command: list[str], arguments: list[str], name: str = "train"
) -> Object:
    """Return a container that trains.

    Args:
        settings: The job.
        command: Starts the script.
        arguments: The script and its arguments.
        name: Of the container. Defaults to `"train"`.
    """
    probe = f'test -n "$(find {HEARTBEAT_FILE} -mmin -{HEARTBEAT_MINUTES})"'
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        **({"command": command} if command else {}),
        **({"args": arguments} if arguments else {}),
        "env": environment(settings),
        "envFrom": environment_sources(settings),
        "resources": resources(settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": {
            "exec": {"command": ["test", "-e", HEARTBEAT_FILE]},
            "periodSeconds": 10,
            "failureThreshold": 6 * HEARTBEAT_MINUTES,
        },
        "livenessProbe": {
            "exec": {"command": ["sh", "-c", probe]},
            "periodSeconds": 30,
            "timeoutSeconds": 10,
            "failureThreshold": 3,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": volume_mounts(settings),
    }


def environment(settings: Settings) -> list[Object]:
    """Return the variables of the pod's processes, besides those of the ConfigMap."""
    token = {"name": TOKEN_SECRET, "key": "token"}
    variables: list[Object] = [
        {
            "name": "JOB_NAME",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{JOB_LABEL}']"}},
        },
        {"name": "HOME", "value": "/tmp"},
        {"name": "TMPDIR", "value": "/tmp"},
        {"name": GRACE_VARIABLE, "value": str(settings.grace - GRACE_MARGIN_SECONDS)},
        {"name": TOKEN_VARIABLE, "valueFrom": {"secretKeyRef": token}},
    ]
    if settings.spot is not None:
        variables.append({"name": NOTICES_VARIABLE, "value": settings.spot})
    return variables


def environment_sources(settings: Settings) -> list[Object]:
    """Return the ConfigMap and the Secret that hold the other variables."""
    return [
        {"configMapRef": {"name": settings.name}},
        {"secretRef": {"name": STORE_SECRET, "optional": True}},
    ]


def resources(settings: Settings) -> Object:
    """Return requests and limits: memory that is reserved for the pod, and whole GPUs."""
    limits: Object = {"memory": settings.memory}
    if settings.gpus:
        limits[GPU] = settings.gpus
    return {"requests": {"cpu": settings.cpu, "memory": settings.memory}, "limits": limits}


def tolerations(settings: Settings) -> list[Object]:
    """Return the taints that the pod accepts, and for how long that of a lost node."""
    found: list[Object] = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_SECONDS,
        }
        for state in ("not-ready", "unreachable")
    ]
    if settings.gpus:
        found.append({"key": GPU, "operator": "Exists", "effect": "NoSchedule"})
    if settings.spot is not None:
        found += _SPOT_TOLERATIONS[settings.spot]
    return found


def volumes(settings: Settings) -> list[Object]:
    """Return the pod's volumes."""
    found: list[Object] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm}},
    ]
    if settings.claim is not None:
        found.append({"name": "runs", "persistentVolumeClaim": {"claimName": settings.claim}})
    return found


def volume_mounts(settings: Settings) -> list[Object]:
    """Return the mount paths of the pod's volumes."""
    found = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}]
    if settings.claim is not None:
        found.append({"name": "runs", "mountPath": MOUNT_PATH})
    return found


_SPOT_NODES = {
    "gce": {"cloud.google.com/gke-spot": "true"},
    "ec2": {"eks.amazonaws.com/capacityType": "SPOT"},
}
_SPOT_TOLERATIONS: dict[str, list[Object]] = {
    "gce": [
        {
            "key": "cloud.google.com/gke-spot",
            "operator": "Equal",
            "value": "true",
            "effect": "NoSchedule",
        }
    ],
    "ec2": [],
}
