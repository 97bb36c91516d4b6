"""What no schema finds: manifests that an API server takes, and whose job then waits for ever, is
killed before it has saved, or is restarted when it should not be.

Each rule looks at one group of pods, and at the objects around it. It knows only what it is given:
a claim or a ConfigMap that is not among the objects may be all right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrib.environment import GRACE_VARIABLE

from . import lint_job_rules
from .settings import MARGIN_SECONDS, MOUNT

Object = Mapping[str, Any]

SHELLS = ("sh", "bash", "dash", "ash")
GRACE_BY_DEFAULT = 30


@dataclass(frozen=True)
class Pods:
    """Pods that are made from one template.

    Attributes:
        title: Kind and name of the object with the template.
        count: How many there are at once.
        template: Theirs.
        job: The spec of their Job; empty if it is not known here.
        name: Of their Job; empty if it is not known here.
    """

    title: str
    count: int
    template: Object
    job: Object
    name: str = ""

    @property
    def spec(self) -> Object:
        """What is in each pod."""
        return self.template.get("spec", {})

    @property
    def container(self) -> Object:
        """The first container, which is the one that trains."""
        return (self.spec.get("containers") or [{}])[0]

    @property
    def words(self) -> Sequence[str]:
        """The command line of its process."""
        return [*self.container.get("command", ()), *self.container.get("args", ())]

    def environment(self, objects: Sequence[Object]) -> dict[str, str]:
        """Return its variables, as far as they are known."""
        names = [entry.get("configMapRef", {}).get("name") for entry in self.all("envFrom")]
        found: dict[str, str] = {}
        for each in objects:
            if each.get("kind") == "ConfigMap" and each["metadata"]["name"] in names:
                found |= each.get("data", {})
        return found | {e["name"]: str(e["value"]) for e in self.all("env") if "value" in e}

    def all(self, field: str) -> list[Any]:
        """Return a list of the container's, which may be left out."""
        return list(self.container.get(field) or ())


def problems(objects: Sequence[Object]) -> list[str]:
    """Return what is wrong with manifests, in a line for each."""
    found = []
    for each in objects:
        for pods in pods_of(each):
            lines = [line for rule in RULES for line in rule(pods, objects)]
            found += [f"{pods.title}: {line}" for line in lines]
        found += [f"{_title(each)}: {line}" for line in _kueue(each)]
    return found


def pods_of(each: Object) -> Iterator[Pods]:
    """Yield the pods of an object that trains; none of any other object."""
    spec, kind, title = each.get("spec") or {}, each.get("kind"), _title(each)
    name = (each.get("metadata") or {}).get("name", "")
    if kind == "Job":
        yield _of_job(title, spec, name)
    elif kind == "JobSet":
        yield from _of_replicated(title, spec, f"{name}-")
    elif kind == "TrainingRuntime":
        yield from _of_replicated(title, spec.get("template", {}).get("spec", {}), "")
    elif kind == "MPIJob":
        for role, replica in spec.get("mpiReplicaSpecs", {}).items():
            count = replica.get("replicas", 1)
            yield Pods(f"{title} {role}", count, replica.get("template", {}), {})


def _of_job(title: str, spec: Object, name: str) -> Pods:
    count = spec.get("parallelism", 1)
    return Pods(title, count, spec.get("template", {}), spec, name)


def _of_replicated(title: str, spec: Object, prefix: str) -> Iterator[Pods]:
    for replicated in spec.get("replicatedJobs", ()):
        name = f"{prefix}{replicated.get('name', '')}-0" if prefix else ""
        job = replicated.get("template", {}).get("spec", {})
        yield _of_job(f"{title} {replicated.get('name', '')}", job, name)


def _title(each: Object) -> str:
    return f"{each.get('kind')}/{(each.get('metadata') or {}).get('name', '?')}"


def _grace(pods: Pods, objects: Sequence[Object]) -> Iterator[str]:
    grace = pods.spec.get("terminationGracePeriodSeconds", GRACE_BY_DEFAULT)
    text = pods.environment(objects).get(GRACE_VARIABLE, "60")
    ranks = float(text) if text.replace(".", "", 1).isdecimal() else 0.0
    if _starts_ranks(pods) and ranks > grace - MARGIN_SECONDS:
        yield (
            f"ranks have DISTRIB_GRACE_SECONDS={text} to save, but the pod is killed after "
            f"terminationGracePeriodSeconds={grace}. Give the pod {MARGIN_SECONDS} s more than the "
            "ranks."
        )


def _first_process(pods: Pods, _: Sequence[Object]) -> Iterator[str]:
    words = pods.words
    if words and words[0].rpartition("/")[2] in SHELLS and not _starts_by_exec(words):
        yield (
            f"the pod's first process is a shell ({words[0]}), which passes no signal on: the "
            "training would never hear of its eviction. Write the command as a list, or begin the "
            "shell's line with exec."
        )


def _starts_by_exec(words: Sequence[str]) -> bool:
    return any("exec " in word for word in words[1:])


def _volumes(pods: Pods, objects: Sequence[Object]) -> Iterator[str]:
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
                "other nodes than the first would never start. It must be ReadWriteMany."
            )


def _ranks(pods: Pods, objects: Sequence[Object]) -> Iterator[str]:
    known = pods.environment(objects)
    ranks, slots = known.get("RANKS", ""), known.get("SLOTS", "")
    if not (
        ranks.isdecimal()
        and slots.isdecimal()
        and any(word.startswith("--join=") for word in pods.words)
    ):
        return
    if int(ranks) != pods.count * int(slots):
        yield (
            f"{pods.count} pods with SLOTS={slots} have {pods.count * int(slots)} places, but "
            f"RANKS={ranks}. The job would wait for the others."
        )


def _checkpoints(pods: Pods, objects: Sequence[Object]) -> Iterator[str]:
    place = pods.environment(objects).get("CHECKPOINT_DIR", "")
    mounted = [mount.get("mountPath") for mount in pods.all("volumeMounts")]
    inside = any(place == path or place.startswith(f"{path}/") for path in mounted)
    if place.startswith("/") and (not inside or place.startswith(("/tmp", "/dev/shm"))):
        yield (
            f"CHECKPOINT_DIR={place} is on the pod's own disk, and gone with the pod. Mount a "
            f"volume, as components/pvc does at {MOUNT}, or name a store: s3://bucket/runs/17."
        )


def _meeting_place(pods: Pods, objects: Sequence[Object]) -> Iterator[str]:
    join = next((word for word in pods.words if word.startswith("--join=")), None)
    subdomain = pods.spec.get("subdomain")
    if join is None or not pods.name or pods.title.startswith("JobSet"):
        return
    host = join.removeprefix("--join=").replace("$(JOB_NAME)", pods.name).partition(":")[0]
    first, _, service = host.partition(".")
    if first != f"{pods.name}-0":
        yield f"{join}: the first pod of the Job is the host {pods.name}-0."
    if service != subdomain:
        yield f"{join}: the pods have the subdomain {subdomain!r}; join {first}.{subdomain}."
    services = {
        each["metadata"]["name"]: each.get("spec") or {}
        for each in objects
        if each.get("kind") == "Service"
    }
    if services and subdomain not in services:
        yield f"the pods have the subdomain {subdomain!r}, but no Service is called so."
    elif services:
        yield from _service(subdomain, services[subdomain])


def _end(pods: Pods, _: Sequence[Object]) -> Iterator[str]:
    """Yield what is wrong with how pods end that have finished."""
    rules = pods.job.get("successPolicy", {}).get("rules", ())
    first_decides = any(rule.get("succeededIndexes") == "0" for rule in rules)
    lingers = "--linger" in pods.words
    if lingers and pods.job and not first_decides:
        yield (
            "with --linger the pods but the first stay until they are stopped, which needs a "
            'successPolicy with succeededIndexes: "0".'
        )
    if first_decides and not lingers and any(word.startswith("--join=") for word in pods.words):
        yield (
            "the pods need --linger: if the first one is lost as it ends, its successor would wait "
            "for others that have ended."
        )


def _service(name: str | None, spec: Object) -> Iterator[str]:
    if spec.get("clusterIP") != "None":
        yield f"the Service {name} must have clusterIP: None, or its pods have no names."
    if not spec.get("publishNotReadyAddresses"):
        yield (
            f"the Service {name} needs publishNotReadyAddresses: true, because pods look for each "
            "other before they are ready."
        )


def _resources(pods: Pods, _: Sequence[Object]) -> Iterator[str]:
    resources = pods.container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    if "memory" in limits and requests.get("memory", limits["memory"]) != limits["memory"]:
        yield (
            f"the memory requested ({requests['memory']}) is less than the limit "
            f"({limits['memory']}): the node may kill the pod for memory that it never had."
        )
    for name, amount in requests.items():
        if "/" in name and limits.get(name) != amount:
            yield f"{name} is requested, which is for limits only: the two must be the same."


def _kueue(each: Object) -> Iterator[str]:
    metadata = each.get("metadata") or {}
    names = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    if "kueue.x-k8s.io/job-min-parallelism" in names:
        yield (
            "kueue.x-k8s.io/job-min-parallelism changes parallelism but not completions, so the "
            "ranks that are there would wait for the others. Take it away."
        )


def _starts_ranks(pods: Pods) -> bool:
    return list(pods.words[:2]) == ["distrib", "run"]


RULES = (
    _grace,
    _first_process,
    _volumes,
    _ranks,
    _checkpoints,
    _meeting_place,
    _end,
    _resources,
    lambda pods, _: lint_job_rules.problems(pods.job, pods.spec, pods.name),
)
