"""Manifests are valid, and `kubectl kustomize` and `distrib k8s render` give the same.

After a change of k8s/ write the files in golden/ again:

    kubectl kustomize k8s/overlays/cpu > tests/unit/launch/k8s/golden/cpu.yaml
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from distrib.launch.cli import main
from distrib.launch.k8s.lint_rules import find_problems

HERE = Path(__file__).parent
K8S = HERE.parents[3] / "k8s"
# From the first version that has all fields (`successPolicy`) to the newest.
VERSIONS = ["1.31", "1.33", "1.36", "1.37"]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Options of `distrib k8s render` that give the objects of k8s/.
COMMON = ["--name=distrib", "--image=distrib"]
TRAIN = ["--", "train.py", "--run=$(CHECKPOINT_DIR)"]
CLAIM = ["--pvc=distrib-runs", "--storage=50Gi", "--checkpoint-dir=/runs/digits"]
DIGITS = ["--", "examples/digits.py", "--run=$(CHECKPOINT_DIR)"]
STORE = ["--checkpoint-dir=s3://BUCKET/runs/distrib"]
SPOT = ["--name=distrib", "--image=distrib-gpu", "--gpus=1", "--spot=gce"]
RESTART = "RestartJobSetAndIgnoreMaxRestarts"
QUEUE = ["--queue=training", "--priority-class=training"]
RENDER_OPTIONS = {
    "overlays/cpu": [*COMMON, *CLAIM, *DIGITS],
    "overlays/gpu-spot": [*SPOT, *STORE, *TRAIN],
    "variants/jobset": [*COMMON, "--variant=jobset", *STORE, *TRAIN],
    "variants/mpijob": [*COMMON, "--variant=mpijob", *STORE, *TRAIN],
    "variants/trainjob": [*COMMON, "--variant=trainjob", *STORE, *TRAIN],
}

Objects = dict[tuple[str, str], dict[str, Any]]


def parsed(text: str) -> Objects:
    loaded = [each for each in yaml.load_all(text, LOADER) if each]
    found = {(each["kind"], each["metadata"]["name"]): each for each in loaded}
    assert len(found) == len(loaded)
    return found


def golden(folder: str) -> Objects:
    return parsed((HERE / "golden" / f"{folder.rpartition('/')[2]}.yaml").read_text())


def kustomize(folder: Path) -> Objects:
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("kubectl is not installed")
    said = subprocess.run([kubectl, "version", "--client", "-o=json"], capture_output=True)
    version = json.loads(said.stdout)["clientVersion"]
    if int(version["minor"].rstrip("+")) < 21:
        pytest.skip(f"kubectl {version['gitVersion']} knows no components")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return parsed(done.stdout)


@pytest.fixture
def render(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> Objects:
        assert main(["k8s", "render", *arguments]) == 0, capsys.readouterr().err
        return parsed(capsys.readouterr().out)

    return call


@pytest.mark.parametrize("folder", RENDER_OPTIONS)
def test_kustomize_gives_the_golden_objects(folder: str) -> None:
    assert kustomize(K8S / folder) == golden(folder)


@pytest.mark.parametrize(("folder", "arguments"), RENDER_OPTIONS.items())
def test_render_gives_the_golden_objects(folder: str, arguments: list[str], render: Any) -> None:
    assert render(*arguments) == golden(folder)


@pytest.mark.parametrize("folder", RENDER_OPTIONS)
@pytest.mark.parametrize("version", VERSIONS)
def test_schemas_accept_all_fields(folder: str, version: str) -> None:
    for each in golden(folder).values():
        validate(each, version)


@pytest.mark.parametrize("folder", RENDER_OPTIONS)
def test_lint_finds_no_fault(folder: str) -> None:
    assert find_problems(list(golden(folder).values())) == []


@pytest.mark.parametrize("folder", RENDER_OPTIONS)
def test_kueue_and_a_second_job_by_name_suffix(folder: str, tmp_path: Path, render: Any) -> None:
    """`nameSuffix` must reach every place where an object names another."""
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps(
            {
                "resources": [os.path.relpath(K8S / folder, tmp_path)],
                "components": [os.path.relpath(K8S / "components/kueue", tmp_path)],
                "nameSuffix": "-17",
            }
        )
    )
    arguments = [word.replace("distrib-runs", "distrib-runs-17") for word in RENDER_OPTIONS[folder]]
    rendered = render(*QUEUE, *arguments[:1], "--name=distrib-17", *arguments[1:])
    assert kustomize(tmp_path) == rendered


@pytest.mark.parametrize("variant", ["job", "jobset", "mpijob", "trainjob"])
def test_all_options_together(variant: str, render: Any) -> None:
    objects = render(
        *(f"--variant={variant}", "--name=big", "--image=registry.example/train:3", "--gpus=8"),
        *("--namespace=ml", "--replicas=4", "--min-replicas=3", "--backend=multiworker"),
        *("--spot=ec2", "--env=LEARNING_RATE=0.1", "--egress-port=9000", "--grace=600"),
        *("--pvc=data", "--checkpoint-dir=/runs/big", "--queue=gpus", "--memory=64Gi"),
        *("--", "train.py", "--epochs=3"),
    )
    assert {each["metadata"]["namespace"] for each in objects.values()} == {"ml"}
    assert objects["ConfigMap", "big"]["data"] == {
        "RANKS": "32",
        "SLOTS": "8",
        "CHECKPOINT_DIR": "/runs/big",
        "LEARNING_RATE": "0.1",
    }
    for each in objects.values():
        validate(each, VERSIONS[-1])
    text = str(objects)
    for part in ("--min-np=24", "--backend=multiworker", "9000", "SPOT", "'DISTRIB_GRACE_SECONDS'"):
        assert part in text


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ("Container train for pod ml/distrib-node-0-1-x failed with exit code 78 ", "FailJobSet"),
        ("Container train for pod ml/distrib-node-0-1-x failed with exit code 75 ", RESTART),
        ("Pod ml/distrib-node-0-1-x has condition DisruptionTarget ", RESTART),
        ("Container train for pod ml/distrib-node-0-1-x failed with exit code 7 ", None),
    ],
)
def test_a_jobset_acts_on_its_jobs_failure_message(message: str, action: str | None) -> None:
    policy = golden("variants/jobset")["JobSet", "distrib"]["spec"]["failurePolicy"]
    found = [
        rule["action"]
        for rule in policy["rules"]
        for pattern in rule.get("onJobFailureMessagePatterns", ())
        if re.search(pattern, f"{message}matching FailJob rule at index 0")
    ]
    assert found == ([action] if action else [])


def test_the_liveness_probe_checks_the_heartbeats_age(tmp_path: Path) -> None:
    (container,) = golden("overlays/cpu")["Job", "distrib"]["spec"]["template"]["spec"][
        "containers"
    ]
    command = container["livenessProbe"]["exec"]["command"]
    file = tmp_path / "heartbeat"
    here = [word.replace("/tmp/heartbeat", str(file)) for word in command]
    assert subprocess.run(here, stderr=subprocess.DEVNULL).returncode != 0
    file.touch()
    assert subprocess.run(here).returncode == 0
    os.utime(file, (time.time() - 8 * 60,) * 2)
    assert subprocess.run(here).returncode != 0


def test_schemas_refuse_unknown_fields() -> None:
    job = golden("overlays/cpu")["Job", "distrib"]
    job["spec"]["podFailurePolicy"]["rules"][0]["onPodCondition"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="onPodCondition"):
        validate(job, VERSIONS[-1])
    jobset = golden("variants/jobset")["JobSet", "distrib"]
    jobset["spec"]["failurePolicy"]["restartStrategie"] = "Recreate"
    with pytest.raises(jsonschema.ValidationError, match="restartStrategie"):
        validate(jobset, VERSIONS[-1])


def validate(each: dict[str, Any], version: str) -> None:
    """Check an object, and the objects in its templates, against the schemas of a version."""
    schema = HERE / "crds" / f"{each['kind'].lower()}.yaml"
    if not schema.exists():
        kubernetes_validate.validate(each, version, strict=True)
        return
    jsonschema.Draft202012Validator(yaml.load(schema.read_text(), LOADER)).validate(each)
    for made in objects_in_templates(each):
        validate(made, version)


def objects_in_templates(each: dict[str, Any]) -> Iterator[dict[str, Any]]:
    head = {"metadata": {"name": "made"}}
    if each["kind"] == "TrainingRuntime":
        template = each["spec"]["template"]
        yield {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", **head, **template}
    elif each["kind"] == "JobSet":
        for replicated in each["spec"]["replicatedJobs"]:
            yield {"apiVersion": "batch/v1", "kind": "Job", **head, **replicated["template"]}
    elif each["kind"] == "MPIJob":
        for replica in each["spec"]["mpiReplicaSpecs"].values():
            template = replica["template"]
            yield {"apiVersion": "v1", "kind": "PodTemplate", **head, "template": template}
