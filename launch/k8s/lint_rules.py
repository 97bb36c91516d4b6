"""Faults in manifests that the API server accepts: no schema finds them.

A job with one of these faults waits forever, is killed before it has saved, or restarts when it
should not. Each rule looks at one group of pods and at the objects around it. A claim or a
ConfigMap that is not among the objects is taken to be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distrib.environment import GRACE_VARIABLE

from . import lint_job_rules
from .pod_group import JOIN_OPTION, Object, PodGroup, object_title, pod_groups
from .settings import GRACE_MARGIN_SECONDS, MOUNT_PATH

SHELLS = ("sh", "bash", "dash", "ash")
KUBERNETES_DEFAULT_GRACE = 30
DISTRIB_DEFAULT_GRACE = "60"


def find_problems(objects: Sequence[Object]) -> list[str]:
    """Return the faults of manifests, one line each."""
    found = []
    for each in objects:
        for pods in pod_groups(each):
            lines = [line for rule in RULES for line in rule(pods, objects)]
            found += [f"{pods.title}: {line}" for line in lines]
        found += [f"{object_title(each)}: {line}" for line in _kueue(each)]
    return found


def _grace(pods: PodGroup, objects: Sequence[Object]) -> Iterator[str]:
    grace = pods.spec.get("terminationGracePeriodSeconds", KUBERNETES_DEFAULT_GRACE)
    text = pods.environment(objects).get(GRACE_VARIABLE, DISTRIB_DEFAULT_GRACE)
    seconds = float(text) if text.replace(".", "", 1).isdecimal() else 0.0
    if pods.starts_ranks and seconds > grace - GRACE_MARGIN_SECONDS:
        yield (
            f"ranks have {GRACE_VARIABLE}={text} to save, but the pod is killed after "
            f"terminationGracePeriodSeconds={grace}. Give the pod {GRACE_MARGIN_SECONDS} s more "
            "than the ranks."
        )


def _first_process(pods: PodGroup, _: Sequence[Object]) -> Iterator[str]:
    words = pods.command_line
    if words and words[0].rpartition("/")[2] in SHELLS and not _uses_exec(words):
        yield (
            f"the pod's first process is a shell ({words[0]}), which forwards no SIGTERM: ranks "
            "would not save on eviction. Write the command as a list, or begin the shell's line "
            "with exec."
        )


def _uses_exec(words: Sequence[str]) -> bool:
    return any("exec " in word for word in words[1:])


def _volumes(pods: PodGroup, objects: Sequence[Object]) -> Iterator[str]:
    claims = {
        each["metadata"]["name"]: (each.get("spec") or {}).get("accessModes", [])
        for each in objects
        if each.get("kind") == "PersistentVolumeClaim"
    }
    for volume in pods.spec.get("volumes", ()):
        name = volume.get("persistentVolumeClaim", {}).get("claimName")
        modes = claims.get(name, ["ReadWriteMany"])
        if pods.count > 1 and "ReadWriteMany" not in modes:
            yield (
                f"{pods.count} pods share the claim {name}, which is {', '.join(modes)}: pods on "
                "a second node would never start. Make the claim ReadWriteMany."
            )


def _ranks(pods: PodGroup, objects: Sequence[Object]) -> Iterator[str]:
    known = pods.environment(objects)
    ranks, slots = known.get("RANKS", ""), known.get("SLOTS", "")
    if pods.join_address is None or not (ranks.isdecimal() and slots.isdecimal()):
        return
    if int(ranks) != pods.count * int(slots):
        yield (
            f"{pods.count} pods with SLOTS={slots} have {pods.count * int(slots)} slots, but "
            f"RANKS={ranks}. The two must be equal."
        )


def _checkpoint_dir(pods: PodGroup, objects: Sequence[Object]) -> Iterator[str]:
    path = pods.environment(objects).get("CHECKPOINT_DIR", "")
    mounts = [mount.get("mountPath") for mount in pods.entries("volumeMounts")]
    mounted = any(path == mount or path.startswith(f"{mount}/") for mount in mounts)
    if path.startswith("/") and (not mounted or path.startswith(("/tmp", "/dev/shm"))):
        yield (
            f"CHECKPOINT_DIR={path} is on the pod's own disk and is lost with the pod. Mount a "
            f"volume, as components/pvc does at {MOUNT_PATH}, or use an object store: "
            "s3://bucket/runs/17."
        )


def _join_address(pods: PodGroup, objects: Sequence[Object]) -> Iterator[str]:
    """Yield faults of the address at which the pods join the first one."""
    address, subdomain = pods.join_address, pods.spec.get("subdomain")
    if address is None or not pods.job_name or pods.title.startswith("JobSet"):
        return
    option = f"{JOIN_OPTION}{address}"
    host = address.replace("$(JOB_NAME)", pods.job_name).partition(":")[0]
    first, _, service = host.partition(".")
    if first != f"{pods.job_name}-0":
        yield f"{option}: the host name of the Job's first pod is {pods.job_name}-0."
    if service != subdomain:
        yield f"{option}: the pods' subdomain is {subdomain!r}; join {first}.{subdomain}."
    services = {
        each["metadata"]["name"]: each.get("spec") or {}
        for each in objects
        if each.get("kind") == "Service"
    }
    if services and subdomain not in services:
        yield f"no Service has the name of the pods' subdomain, {subdomain!r}."
    elif services:
        yield from _service(subdomain, services[subdomain])


def _service(name: str | None, spec: Object) -> Iterator[str]:
    if spec.get("clusterIP") != "None":
        yield f"the Service {name} must have clusterIP: None, or its pods get no DNS names."
    if not spec.get("publishNotReadyAddresses"):
        yield (
            f"the Service {name} needs publishNotReadyAddresses: true, because pods look each "
            "other up before they are ready."
        )


def _linger(pods: PodGroup, _: Sequence[Object]) -> Iterator[str]:
    """Yield faults of how pods end after training has finished."""
    rules = pods.job.get("successPolicy", {}).get("rules", ())
    first_decides = any(rule.get("succeededIndexes") == "0" for rule in rules)
    lingers = "--linger" in pods.command_line
    if lingers and pods.job and not first_decides:
        yield (
            "with --linger all pods but the first stay until they are stopped, which needs a "
            'successPolicy with succeededIndexes: "0".'
        )
    if first_decides and not lingers and pods.join_address is not None:
        yield (
            "the pods need --linger: if the first pod is lost as it ends, its replacement would "
            "wait for pods that have ended."
        )


def _resources(pods: PodGroup, _: Sequence[Object]) -> Iterator[str]:
    resources = pods.container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    if "memory" in limits and requests.get("memory", limits["memory"]) != limits["memory"]:
        yield (
            f"the memory request ({requests['memory']}) is less than the limit "
            f"({limits['memory']}): a node short of memory may kill the pod."
        )
    for name, amount in requests.items():
        if "/" in name and limits.get(name) != amount:
            yield f"{name}: request and limit must be equal; set the limit only."


def _kueue(each: Object) -> Iterator[str]:
    metadata = each.get("metadata") or {}
    names = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    if "kueue.x-k8s.io/job-min-parallelism" in names:
        yield (
            "kueue.x-k8s.io/job-min-parallelism changes parallelism but not completions, so "
            "admitted ranks would wait for missing ones. Remove it."
        )


RULES = (
    _grace,
    _first_process,
    _volumes,
    _ranks,
    _checkpoint_dir,
    _join_address,
    _linger,
    _resources,
    lambda pods, _: lint_job_rules.find_problems(pods.job, pods.spec, pods.job_name),
)
