"""The settings of a job on Kubernetes, and a check of them.

The check names the options of `distrib k8s render`. Faults that show only between objects are found
by `lint_rules.py`, in any manifests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from distrib.errors import UsageError

JOB, JOBSET, MPIJOB, TRAINJOB = VARIANTS = ("job", "jobset", "mpijob", "trainjob")
MAX_HOST_NAME = 63
# What controllers append to a job's name for the host name of a pod.
HOST_SUFFIX = {JOB: "-{}", JOBSET: "-node-0-{}-abcde", MPIJOB: "-worker-{}"}
ACCESS_MODES = ("ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
SPOT_CLOUDS = ("gce", "ec2")
MOUNT_PATH = "/runs"
# Part of a pod's grace period that is not for saving: delivery of the signal, and the exit.
GRACE_MARGIN_SECONDS = 15
# Failures that count: of each pod of a Job, of a JobSet, of an MPIJob's launcher.
MAX_FAILURES = 6
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4}


@dataclass(frozen=True)
class Settings:
    """A job.

    Attributes:
        name: Of the job and its objects.
        image: Container image with distrib and the script.
        script: The script and its arguments.
        variant: Kind of the workload, one of `VARIANTS`.
        completions: Number of pods that must finish.
        parallelism: Number of pods that run at once.
        min_replicas: Number of pods with which the job may continue; `None` for all.
        slots: Ranks per pod.
        gpus: GPUs per pod.
        cpu: CPUs per pod, as a Kubernetes quantity.
        memory: Memory per pod, as a Kubernetes quantity.
        shm: Size of /dev/shm, a part of the memory, as a Kubernetes quantity.
        grace: Seconds from SIGTERM to SIGKILL.
        save_seconds: Duration of a save.
        step_seconds: Duration of a train step.
        deadline: Seconds until the job fails.
        join_timeout: Seconds to wait for missing pods.
        backend: Exchanges gradients: `"horovod"` or `"multiworker"`.
        checkpoint_dir: Path or URL of the run's directory.
        claim: PersistentVolumeClaim to mount at `MOUNT_PATH`; `None` for none.
        access_mode: Of the claim.
        storage: Size of the claim to create; `None` if the claim exists.
        egress_ports: TCP ports outside the job that pods may connect to.
        queue: Kueue's LocalQueue; `None` for none.
        priority: Kueue's WorkloadPriorityClass; `None` for none.
        spot: Cloud of the spot nodes, one of `SPOT_CLOUDS`; `None` for other nodes.
        namespace: Of all objects; `None` for kubectl's.
        environment: Variables for the script.
    """

    name: str
    image: str
    script: Sequence[str]
    checkpoint_dir: str
    variant: str = JOB
    completions: int = 2
    parallelism: int = 2
    min_replicas: int | None = None
    slots: int = 1
    gpus: int = 0
    cpu: str = "2"
    memory: str = "4Gi"
    shm: str = "1Gi"
    grace: int = 120
    save_seconds: int = 30
    step_seconds: int = 10
    deadline: int = 7 * 24 * 3600
    join_timeout: int = 900  # Kubernetes restarts a failed pod after 10 minutes at the latest.
    backend: str = "horovod"
    claim: str | None = None
    access_mode: str = "ReadWriteMany"
    storage: str | None = None
    egress_ports: Sequence[int] = ()
    queue: str | None = None
    priority: str | None = None
    spot: str | None = None
    namespace: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """Number of ranks of the job."""
        return self.parallelism * self.slots

    @property
    def is_remote(self) -> bool:
        """Whether checkpoints go to an object store."""
        scheme, separator, _ = self.checkpoint_dir.partition("://")
        return bool(separator) and scheme not in ("file", "local", "memory")

    @property
    def ports(self) -> list[int]:
        """TCP ports outside the job that pods may connect to, the store's included."""
        return list(self.egress_ports) or ([443] if self.is_remote else [])


def min_grace(save_seconds: float, step_seconds: float) -> int:
    """Return the seconds that a pod needs between SIGTERM and SIGKILL.

    A save in progress must end before the last one begins. Several ranks need one more step to
    agree on the stop.
    """
    return int(2 * (save_seconds + step_seconds) + GRACE_MARGIN_SECONDS)


def check_settings(settings: Settings) -> None:
    """Check for settings that Kubernetes accepts and the job would not survive.

    Raises:
        UsageError: Names the option, and a value that works.
    """
    _check_name(settings)
    _check_size(settings)
    _check_time(settings)
    _check_storage(settings)


def _check_name(settings: Settings) -> None:
    name = settings.name
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise UsageError(
            f"{name}: a name must consist of lowercase letters, digits and hyphens and begin with "
            "a letter, because it becomes part of host names."
        )
    suffix = HOST_SUFFIX.get(settings.variant, HOST_SUFFIX[JOBSET])
    host = name + suffix.format(settings.completions - 1)
    if len(host) > MAX_HOST_NAME:
        raise UsageError(
            f"{name}: the name is too long. The last pod's host name would be {host}, and host "
            f"names have at most {MAX_HOST_NAME} characters: shorten the name by "
            f"{len(host) - MAX_HOST_NAME}."
        )
    for variable in settings.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            raise UsageError(f"--env {variable}: not a valid variable name.")


def _check_size(settings: Settings) -> None:
    pods = settings.parallelism
    if settings.completions != pods:
        raise UsageError(
            f"--completions {settings.completions} with --parallelism {pods}: all ranks train "
            "together, so all pods must run at once. Give --replicas alone."
        )
    if settings.min_replicas is not None and settings.min_replicas > pods:
        raise UsageError(f"--min-replicas {settings.min_replicas}: there are {pods} replicas.")
    if settings.gpus and settings.slots != settings.gpus:
        raise UsageError(
            f"--slots {settings.slots} with --gpus {settings.gpus}: each GPU has one rank. Leave "
            "--slots out."
        )
    if parse_quantity("--shm", settings.shm) >= parse_quantity("--memory", settings.memory):
        raise UsageError(
            f"--shm {settings.shm} with --memory {settings.memory}: shared memory is part of the "
            "pod's memory. Raise --memory, or lower --shm."
        )
    parse_quantity("--cpu", settings.cpu)


def _check_time(settings: Settings) -> None:
    needed = min_grace(settings.save_seconds, settings.step_seconds)
    if settings.grace < needed:
        raise UsageError(
            f"--grace {settings.grace}: a pod needs {needed} s to stop: twice a save "
            f"(--save-time {settings.save_seconds}), because one may be in progress, twice a step "
            f"(--step-time {settings.step_seconds}), and {GRACE_MARGIN_SECONDS} s to spare. Give "
            f"--grace {needed}."
        )
    if settings.deadline <= settings.join_timeout + settings.grace:
        raise UsageError(
            f"--deadline {settings.deadline}: too short for a job that may wait "
            f"{settings.join_timeout} s for its pods."
        )
    if settings.priority is not None and settings.queue is None:
        raise UsageError(f"--priority-class {settings.priority} needs Kueue: give --queue, too.")


def _check_storage(settings: Settings) -> None:
    path, claim, pods = settings.checkpoint_dir, settings.claim, settings.parallelism
    if settings.storage is not None:
        parse_quantity("--storage", settings.storage)
        if claim is None:
            raise UsageError(f"--storage {settings.storage} needs a claim: give --pvc.")
    if settings.is_remote:
        return
    if claim is None:
        raise UsageError(
            f"--checkpoint-dir {path}: a pod's own disk is lost with the pod. Give a URL such as "
            "s3://bucket/runs/17, or a folder of a volume: --pvc NAME with "
            f"--checkpoint-dir {MOUNT_PATH}/17."
        )
    if PurePosixPath(MOUNT_PATH) not in PurePosixPath(path.removeprefix("file://")).parents:
        raise UsageError(
            f"--checkpoint-dir {path}: the volume of --pvc {claim} is mounted at {MOUNT_PATH}. "
            f"Give a folder in it, such as {MOUNT_PATH}/17."
        )
    if settings.access_mode != "ReadWriteMany" and pods > 1:
        raise UsageError(
            f"--access-mode {settings.access_mode} with {pods} replicas: only one node can mount "
            "the volume, and pods on other nodes would never start. Use a ReadWriteMany volume, or "
            "an object store: --checkpoint-dir s3://bucket/runs/17."
        )


def parse_quantity(argument: str, text: str) -> float:
    """Return the number that a Kubernetes quantity, such as `4Gi` or `500m`, stands for.

    Args:
        argument: Name of the option, for the message.
        text: The quantity.

    Raises:
        UsageError: If the text is not a quantity.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGTP]?|[KMGT]i)", text)
    if not match:
        raise UsageError(f"{argument} {text}: not a quantity, like 4, 500m or 16Gi.")
    number, unit = float(match[1]), match[2]
    if unit == "m":
        return number / 1000
    return number * (1024.0 if unit.endswith("i") else 1000.0) ** _POWERS[unit]
