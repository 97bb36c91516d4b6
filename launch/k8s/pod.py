"""The pod of a job: how its process starts, what it may do, and where it may run.

The process is the container's first, without a shell, so that SIGTERM reaches it. It writes nowhere
but into /tmp, /dev/shm and the volume of the run, and is nobody special: the rules of Kubernetes'
"restricted" profile.
"""

from __future__ import annotations

from typing import Any

from distrib.environment import GRACE_VARIABLE, NOTICES_VARIABLE

from ..hosts.protocol import PORT, TOKEN_VARIABLE
from .settings import MARGIN_SECONDS, MOUNT, Settings

Object = dict[str, Any]

HEARTBEAT = "/tmp/heartbeat"
HEARTBEAT_MINUTES = 3  # It is touched every second, and a little later while hosts are asked.
LOST_NODE_SECONDS = 60
TOKEN_SECRET = "distrib-join-token"
STORE_SECRET = "distrib-object-store"
LABELS = {"app.kubernetes.io/name": "distrib"}
JOB_LABEL = "batch.kubernetes.io/job-name"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
MPIJOB_LABEL = "training.kubeflow.org/job-name"
GPU = "nvidia.com/gpu"


def joining(settings: Settings, service: str) -> list[str]:
    """Return the command of a pod that meets the others at the first one.

    Args:
        settings: The job.
        service: Name of the headless Service.
    """
    options = ["--num-proc=$(RANKS)", "--slots=$(SLOTS)"]
    if settings.min_replicas is not None:
        options.append(f"--min-np={settings.min_replicas * settings.slots}")
    if settings.backend != "horovod":
        options.append(f"--backend={settings.backend}")
    return [
        *("distrib", "run", f"--join=$(JOB_NAME)-0.{service}:{PORT}", *options),
        *(f"--join-timeout={settings.join_timeout}", f"--heartbeat-file={HEARTBEAT}"),
    ]


def pod_template(
    settings: Settings, container: Object, same: str, subdomain: str | None = None
) -> Object:
    """Return the template of a job's pods.

    Args:
        settings: The job.
        container: What the pod runs, as `training_container` returns it.
        same: Label that the job's pods have in common, and others have not.
        subdomain: The headless Service that gives pods their names; `None` leaves that to others.
    """
    alike = {"labelSelector": {"matchLabels": LABELS}, "matchLabelKeys": [same]}
    zone = {"weight": 100, "podAffinityTerm": {"topologyKey": "topology.kubernetes.io/zone"}}
    zone["podAffinityTerm"] |= alike  # type: ignore[operator]
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
                **alike,
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
        command: What starts the script.
        arguments: The script and its arguments.
        name: Of the container.
    """
    probe = f'test -n "$(find {HEARTBEAT} -mmin -{HEARTBEAT_MINUTES})"'
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        **({"command": command} if command else {}),
        **({"args": arguments} if arguments else {}),
        "env": environment(settings),
        "envFrom": sources(settings),
        "resources": resources(settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": {
            "exec": {"command": ["test", "-e", HEARTBEAT]},
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
        "volumeMounts": mounts(settings),
    }


def environment(settings: Settings) -> list[Object]:
    """Return what every process of the pod finds in its environment, besides the ConfigMap."""
    token = {"name": TOKEN_SECRET, "key": "token"}
    variables: list[Object] = [
        {
            "name": "JOB_NAME",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{JOB_LABEL}']"}},
        },
        {"name": "HOME", "value": "/tmp"},
        {"name": "TMPDIR", "value": "/tmp"},
        {"name": GRACE_VARIABLE, "value": str(settings.grace - MARGIN_SECONDS)},
        {"name": TOKEN_VARIABLE, "valueFrom": {"secretKeyRef": token}},
    ]
    if settings.spot is not None:
        variables.append({"name": NOTICES_VARIABLE, "value": settings.spot})
    return variables


def sources(settings: Settings) -> list[Object]:
    """Return where the rest of the environment comes from."""
    return [
        {"configMapRef": {"name": settings.name}},
        {"secretRef": {"name": STORE_SECRET, "optional": True}},
    ]


def resources(settings: Settings) -> Object:
    """Return what the pod takes: memory that nobody else was promised, and whole GPUs."""
    limits: Object = {"memory": settings.memory}
    if settings.gpus:
        limits[GPU] = settings.gpus
    return {"requests": {"cpu": settings.cpu, "memory": settings.memory}, "limits": limits}


def tolerations(settings: Settings) -> list[Object]:
    """Return which nodes the pod accepts, and how long one that does not answer."""
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


def mounts(settings: Settings) -> list[Object]:
    """Return where they are."""
    found = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}]
    if settings.claim is not None:
        found.append({"name": "runs", "mountPath": MOUNT})
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
