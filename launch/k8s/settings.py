"""What a job on Kubernetes is, in the words of somebody who asks for one.

`k8s_objects.py` makes manifests of it. What cannot work is refused here, where it still has the
name of an option; what goes wrong only between objects is found by `k8s_lint.py`, in anybody's
manifests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from distrib.errors import UsageError

JOB, JOBSET, MPIJOB, TRAINJOB = VARIANTS = ("job", "jobset", "mpijob", "trainjob")
# By the length of what the controllers append to a name for a host, which has 63 letters at most.
LONGEST_SUFFIX = {JOB: "-{}", JOBSET: "-node-0-{}-abcde", MPIJOB: "-worker-{}"}
ACCESS_MODES = ("ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
SPOT_CLOUDS = ("gce", "ec2")
MOUNT = "/runs"
# What a pod needs of its grace period besides saving: the signal's way, the last step, the end.
MARGIN_SECONDS = 15
_UNITS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4}


@dataclass(frozen=True)
class Settings:
    """A job.

    Attributes:
        name: Of the job, and of all that belongs to it.
        image: Container image with distrib and the script.
        script: The script and its arguments.
        variant: Who runs the pods.
        completions: How many pods have to finish.
        parallelism: How many run at once.
        min_replicas: With how many the job may go on if pods are missing.
        slots: Ranks in each pod.
        gpus: Of each pod.
        cpu: Of each pod, as a Kubernetes quantity.
        memory: The same.
        shm: Of the memory, what may be shared between processes.
        grace: Seconds from the request to stop to the kill.
        save_seconds: How long a save takes.
        step_seconds: How long a train step takes.
        deadline: Seconds until the job is given up.
        join_timeout: Seconds for which missing pods are waited for.
        backend: How ranks exchange gradients.
        checkpoint_dir: Where the run is saved.
        claim: PersistentVolumeClaim that is mounted at `MOUNT`; `None` for none.
        access_mode: Of the claim.
        storage: Size of the claim, which is made then; `None` takes one that is there.
        egress_ports: TCP ports outside the job that pods may connect to.
        queue: Kueue's LocalQueue; `None` for none.
        priority: Kueue's WorkloadPriorityClass.
        spot: Whose spot machines are used.
        namespace: Where all of it goes.
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
    join_timeout: int = 900  # Kubernetes brings a pod back after 10 minutes at the latest.
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
        """Of the whole job."""
        return self.parallelism * self.slots

    @property
    def is_remote(self) -> bool:
        """Whether checkpoints go to a store."""
        scheme, separator, _ = self.checkpoint_dir.partition("://")
        return bool(separator) and scheme not in ("file", "local", "memory")

    @property
    def ports(self) -> list[int]:
        """TCP ports outside the job that pods may connect to, that of the store included."""
        return list(self.egress_ports) or ([443] if self.is_remote else [])


def shortest_grace(save_seconds: float, step_seconds: float) -> int:
    """Return how many seconds a pod must have between SIGTERM and SIGKILL.

    A save may be under way when the signal comes, and has to end before the last one can begin;
    and with several ranks, the step in progress is followed by another one.
    """
    return int(2 * (save_seconds + step_seconds) + MARGIN_SECONDS)


def refuse_what_cannot_work(settings: Settings) -> None:
    """Look for what Kubernetes would accept, and the job would not survive.

    Raises:
        UsageError: If there is such a thing.
    """
    _check_name(settings)
    _check_size(settings)
    _check_time(settings)
    _check_storage(settings)


def _check_name(settings: Settings) -> None:
    name = settings.name
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise UsageError(
            f"{name}: a name has small letters, digits and hyphens, and begins with a letter, "
            "because hosts are called by it."
        )
    suffix = LONGEST_SUFFIX.get(settings.variant, LONGEST_SUFFIX[JOBSET])
    host = name + suffix.format(settings.completions - 1)
    if len(host) > 63:
        raise UsageError(
            f"{name}: the name is too long. The last pod would be the host {host}, and a host's "
            f"name has 63 letters at most; take {len(host) - 63} away."
        )
    for variable in settings.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            raise UsageError(f"--env {variable}: this is no name of a variable.")


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
            f"--slots {settings.slots} with --gpus {settings.gpus}: there is one rank on each "
            "GPU. Leave --slots out."
        )
    if quantity("--shm", settings.shm) >= quantity("--memory", settings.memory):
        raise UsageError(
            f"--shm {settings.shm} with --memory {settings.memory}: shared memory is part of the "
            "pod's memory. Give the pod more, or shared memory less."
        )
    quantity("--cpu", settings.cpu)


def _check_time(settings: Settings) -> None:
    needed = shortest_grace(settings.save_seconds, settings.step_seconds)
    if settings.grace < needed:
        raise UsageError(
            f"--grace {settings.grace}: a pod needs {needed} s to stop: twice a save "
            f"(--save-time {settings.save_seconds}), because one may be under way, twice a step "
            f"(--step-time {settings.step_seconds}), and {MARGIN_SECONDS} s to spare. Give "
            f"--grace {needed}."
        )
    if settings.deadline <= settings.join_timeout + settings.grace:
        raise UsageError(
            f"--deadline {settings.deadline}: in so many seconds a job that waits "
            f"{settings.join_timeout} s for its pods gets nowhere."
        )
    if settings.priority is not None and settings.queue is None:
        raise UsageError(
            f"--priority-class {settings.priority}: that is Kueue's. Give --queue, too."
        )


def _check_storage(settings: Settings) -> None:
    place, claim, pods = settings.checkpoint_dir, settings.claim, settings.parallelism
    if settings.storage is not None:
        quantity("--storage", settings.storage)
        if claim is None:
            raise UsageError(f"--storage {settings.storage}: of which claim? Give --pvc.")
    if settings.is_remote:
        return
    if claim is None:
        raise UsageError(
            f"--checkpoint-dir {place}: what is on a pod's own disk is gone with the pod. Give a "
            f"URL such as s3://bucket/runs/17, or a folder of a volume: --pvc NAME with "
            f"--checkpoint-dir {MOUNT}/17."
        )
    if PurePosixPath(MOUNT) not in PurePosixPath(place.removeprefix("file://")).parents:
        raise UsageError(
            f"--checkpoint-dir {place}: the volume of --pvc {claim} is at {MOUNT}, so give a "
            f"folder in it, such as {MOUNT}/17."
        )
    if settings.access_mode != "ReadWriteMany" and pods > 1:
        raise UsageError(
            f"--access-mode {settings.access_mode} with {pods} replicas: only one node can mount "
            "such a volume, and the pods on other nodes would never start. Take a volume that is "
            "ReadWriteMany, or a store: --checkpoint-dir s3://bucket/runs/17."
        )


def quantity(argument: str, text: str) -> float:
    """Return the number that a Kubernetes quantity such as `4Gi` or `500m` means.

    Raises:
        UsageError: If it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGTP]?|[KMGT]i)", text)
    if not match:
        raise UsageError(f"{argument} {text}: not a quantity, like 4, 500m or 16Gi.")
    number, unit = float(match[1]), match[2]
    if unit == "m":
        return number / 1000
    return number * (1024.0 if unit.endswith("i") else 1000.0) ** _UNITS[unit]
