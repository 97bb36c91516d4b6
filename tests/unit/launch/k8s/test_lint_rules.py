"""Faults that Kubernetes' schemas accept, each put into correct manifests."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distrib.launch.cli import main
from distrib.launch.k8s.lint_rules import find_problems

GOLDEN = Path(__file__).parent / "golden"
Objects = dict[str, Any]


def load(name: str) -> Objects:
    loaded = yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text())
    return {each["kind"]: each for each in loaded}


CPU, JOBSET = load("cpu"), load("jobset")


def job(objects: Objects) -> Any:
    return objects["Job"]["spec"]


def pod(objects: Objects) -> Any:
    return job(objects)["template"]["spec"]


def container(objects: Objects) -> Any:
    return pod(objects)["containers"][0]


def rules(objects: Objects) -> Any:
    return job(objects)["podFailurePolicy"]["rules"]


def set_env(objects: Objects, name: str, value: str) -> None:
    container(objects)["env"].append({"name": name, "value": value})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        # An API server refuses these, no schema does.
        (lambda o: pod(o).update(restartPolicy="OnFailure"), "restartPolicy 'OnFailure'"),
        (lambda o: rules(o)[1].update(action="Fail"), "action 'Fail' does not exist"),
        (
            lambda o: rules(o)[1]["onExitCodes"].update(operator="Is"),
            "operator 'Is' does not exist",
        ),
        (lambda o: rules(o)[1]["onExitCodes"].update(values=[78, 64, 65, 70]), "sorted and unique"),
        (lambda o: rules(o)[1]["onExitCodes"]["values"].insert(0, 0), "0 is not a failure"),
        (lambda o: rules(o)[0].pop("onPodConditions"), "one of onExitCodes and onPodConditions"),
        (lambda o: job(o).update(podReplacementPolicy="TerminatingOrFailed"), "must be Failed"),
        (lambda o: job(o).pop("backoffLimitPerIndex"), "maxFailedIndexes requires"),
        (lambda o: job(o).update(completionMode="NonIndexed"), "must be Indexed"),
        (lambda o: o["Job"]["metadata"].update(name="a" * 62), "longer than 63"),
        # An API server accepts these.
        (lambda o: job(o).update(completions=4), "completions 4 and parallelism 2"),
        (lambda o: job(o).pop("podFailurePolicy"), "no podFailurePolicy"),
        (lambda o: job(o).pop("activeDeadlineSeconds"), "restart forever"),
        (lambda o: job(o).update(maxFailedIndexes=1), "must be 0"),
        (lambda o: rules(o).append(rules(o).pop(0)), "first rule must be Ignore"),
        (lambda o: rules(o).pop(2), "exit code 75 is retryable"),
        (
            lambda o: rules(o)[1]["onExitCodes"]["values"].remove(70),
            "exit code 70 is not retryable",
        ),
        (lambda o: rules(o)[1].update(action="FailIndex"), "exit code 64 is not retryable"),
        (
            lambda o: pod(o).pop("terminationGracePeriodSeconds"),
            "terminationGracePeriodSeconds=30",
        ),
        (lambda o: set_env(o, "DISTRIB_GRACE_SECONDS", "110"), "DISTRIB_GRACE_SECONDS=110"),
        (
            lambda o: o["PersistentVolumeClaim"]["spec"].update(accessModes=["ReadWriteOnce"]),
            "which is ReadWriteOnce",
        ),
        (lambda o: container(o).update(command=["sh", "-c", "distrib run"]), "is a shell (sh)"),
        (lambda o: o["ConfigMap"]["data"].update(RANKS="3"), "RANKS=3"),
        (lambda o: o["ConfigMap"]["data"].update(CHECKPOINT_DIR="/data/1"), "the pod's own disk"),
        (lambda o: o["ConfigMap"]["data"].update(CHECKPOINT_DIR="/tmp/1"), "the pod's own disk"),
        (lambda o: job(o).pop("successPolicy"), "needs a successPolicy"),
        (lambda o: container(o)["command"].remove("--linger"), "the pods need --linger"),
        (lambda o: o["Job"]["metadata"].update(name="other"), "subdomain is 'distrib'"),
        (lambda o: o["Service"]["metadata"].update(name="other"), "no Service has the name"),
        (lambda o: o["Service"]["spec"].pop("clusterIP"), "clusterIP: None"),
        (
            lambda o: o["Service"]["spec"].pop("publishNotReadyAddresses"),
            "publishNotReadyAddresses: true",
        ),
        (
            lambda o: container(o)["resources"]["requests"].update(memory="1Gi"),
            "less than the limit (4Gi)",
        ),
        (
            lambda o: container(o)["resources"]["requests"].update({"nvidia.com/gpu": 1}),
            "set the limit only",
        ),
        (
            lambda o: o["Job"]["metadata"].update(
                annotations={"kueue.x-k8s.io/job-min-parallelism": "1"}
            ),
            "changes parallelism but not completions",
        ),
    ],
)
def test_each_fault_is_found(change: Callable[[Objects], None], word: str) -> None:
    objects = copy.deepcopy(CPU)
    change(objects)
    assert any(word in line for line in find_problems(list(objects.values())))


def test_a_jobsets_job_must_fail_with_its_first_pod() -> None:
    objects = copy.deepcopy(JOBSET)
    (replicated,) = objects["JobSet"]["spec"]["replicatedJobs"]
    found = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
    found[0]["action"] = "Ignore"
    found[1]["onExitCodes"]["values"].remove(76)
    lines = find_problems(list(objects.values()))
    assert any("JobSet/distrib node: exit code 76" in line and "FailJob" in line for line in lines)


def test_a_shell_with_exec_is_no_fault() -> None:
    objects = copy.deepcopy(CPU)
    words = container(objects)["command"]
    words[:] = ["sh", "-c", f"exec {' '.join(words)} train.py"]
    assert find_problems(list(objects.values())) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["k8s", "lint", str(GOLDEN / "cpu.yaml"), str(GOLDEN / "jobset.yaml")]) == 0
    broken = copy.deepcopy(CPU)
    pod(broken)["restartPolicy"] = "Always"
    file = tmp_path / "list.yaml"
    file.write_text(yaml.safe_dump({"kind": "List", "items": list(broken.values())}))
    capsys.readouterr()
    assert main(["k8s", "lint", str(file)]) == 78
    assert capsys.readouterr().err.startswith("Job/distrib: restartPolicy 'Always'")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "not all documents are objects"),
        ("kind: ConfigMap\nmetadata: {name: a}", "no Job, JobSet"),
    ],
)
def test_input_without_workloads_is_refused(
    text: str,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["k8s", "lint", "-"]) == 64
    assert word in capsys.readouterr().err


def test_a_missing_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["k8s", "lint", "nowhere.yaml"]) == 64
    assert "nowhere.yaml" in capsys.readouterr().err
