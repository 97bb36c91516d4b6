"""Groups of pods that share a template, found in Jobs, JobSets, TrainingRuntimes and MPIJobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]

JOIN_OPTION = "--join="


@dataclass(frozen=True)
class PodGroup:
    """Pods made from one template.

    Attributes:
        title: Kind and name of the object with the template.
        count: Number of pods at a time.
        template: Of the pods.
        job: The spec of their Job; empty if it is unknown.
        job_name: Name of their Job; empty if it is unknown.
    """

    title: str
    count: int
    template: Object
    job: Object
    job_name: str = ""

    @property
    def spec(self) -> Object:
        """The spec of each pod."""
        return self.template.get("spec", {})

    @property
    def container(self) -> Object:
        """The first container, which trains."""
        return (self.spec.get("containers") or [{}])[0]

    @property
    def command_line(self) -> Sequence[str]:
        """Command and arguments of the container's first process."""
        return [*self.container.get("command", ()), *self.container.get("args", ())]

    @property
    def starts_ranks(self) -> bool:
        """Whether the first process is `distrib run`."""
        return list(self.command_line[:2]) == ["distrib", "run"]

    @property
    def join_address(self) -> str | None:
        """The address in `--join=HOST[:PORT]`; `None` without the option."""
        found = (word for word in self.command_line if word.startswith(JOIN_OPTION))
        option = next(found, None)
        return None if option is None else option.removeprefix(JOIN_OPTION)

    def environment(self, objects: Sequence[Object]) -> dict[str, str]:
        """Return the container's variables, as far as the objects tell their values."""
        names = [entry.get("configMapRef", {}).get("name") for entry in self.entries("envFrom")]
        found: dict[str, str] = {}
        for each in objects:
            if each.get("kind") == "ConfigMap" and each["metadata"]["name"] in names:
                found |= each.get("data", {})
        return found | {e["name"]: str(e["value"]) for e in self.entries("env") if "value" in e}

    def entries(self, field: str) -> list[Any]:
        """Return a list field of the container; empty if the manifest leaves it out."""
        return list(self.container.get(field) or ())


def pod_groups(each: Object) -> Iterator[PodGroup]:
    """Yield the pods of an object that trains; nothing for other kinds of objects."""
    spec, kind, title = each.get("spec") or {}, each.get("kind"), object_title(each)
    name = (each.get("metadata") or {}).get("name", "")
    if kind == "Job":
        yield _of_job(title, spec, name)
    elif kind == "JobSet":
        yield from _of_replicated_jobs(title, spec, f"{name}-")
    elif kind == "TrainingRuntime":
        yield from _of_replicated_jobs(title, spec.get("template", {}).get("spec", {}), "")
    elif kind == "MPIJob":
        for role, replica in spec.get("mpiReplicaSpecs", {}).items():
            count = replica.get("replicas", 1)
            yield PodGroup(f"{title} {role}", count, replica.get("template", {}), {})


def object_title(each: Object) -> str:
    """Return kind and name of an object, such as `Job/digits`."""
    return f"{each.get('kind')}/{(each.get('metadata') or {}).get('name', '?')}"


def _of_job(title: str, spec: Object, name: str) -> PodGroup:
    count = spec.get("parallelism", 1)
    return PodGroup(title, count, spec.get("template", {}), spec, name)


def _of_replicated_jobs(title: str, spec: Object, prefix: str) -> Iterator[PodGroup]:
    for replicated in spec.get("replicatedJobs", ()):
        name = f"{prefix}{replicated.get('name', '')}-0" if prefix else ""
        job = replicated.get("template", {}).get("spec", {})
        yield _of_job(f"{title} {replicated.get('name', '')}", job, name)
