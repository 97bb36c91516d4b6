from pathlib import Path
from typing import Any

import pytest
import yaml

from distrib.launch.k8s.pod_group import PodGroup, pod_groups

GOLDEN = Path(__file__).parent / "golden"


def groups(name: str) -> list[PodGroup]:
    objects = yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text())
    return [group for each in objects for group in pod_groups(each)]


def pods(command: list[str], arguments: list[str]) -> PodGroup:
    container = {"command": command, "args": arguments}
    return PodGroup("Job/a", 1, {"spec": {"containers": [container]}}, {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", [("Job/distrib", 2, "distrib")]),
        ("jobset", [("JobSet/distrib node", 2, "distrib-node-0")]),
        ("trainjob", [("TrainingRuntime/distrib node", 2, "")]),
        ("mpijob", [("MPIJob/distrib Launcher", 1, ""), ("MPIJob/distrib Worker", 2, "")]),
    ],
)
def test_each_workload_has_its_groups(name: str, expected: Any) -> None:
    assert [(group.title, group.count, group.job_name) for group in groups(name)] == expected


def test_join_address() -> None:
    assert pods(["distrib", "run", "--join=a-0.a:7600"], []).join_address == "a-0.a:7600"
    assert pods(["distrib", "run"], ["--join=a-0"]).join_address == "a-0"
    assert pods(["distrib", "run", "--join-timeout=9"], []).join_address is None


def test_starts_ranks() -> None:
    assert pods(["distrib", "run", "train.py"], []).starts_ranks
    assert not pods(["distrib", "k8s"], []).starts_ranks
    assert not PodGroup("Job/a", 1, {}, {}).starts_ranks


def test_environment_of_config_maps_and_of_the_container() -> None:
    container = {
        "envFrom": [{"configMapRef": {"name": "known"}}, {"configMapRef": {"name": "missing"}}],
        "env": [{"name": "B", "value": "2"}, {"name": "C", "valueFrom": {}}],
    }
    group = PodGroup("Job/a", 1, {"spec": {"containers": [container]}}, {})
    config_map = {"kind": "ConfigMap", "metadata": {"name": "known"}, "data": {"A": "1", "B": "1"}}
    assert group.environment([config_map]) == {"A": "1", "B": "2"}
