import sys
from pathlib import Path
from typing import Any

import pytest

from distrib.launch.doctor import frameworks
from distrib.launch.doctor.finding import OK, PROBLEM, WARNING, Finding
from distrib.launch.doctor.frameworks import (
    check_frameworks,
    check_gpus,
    check_horovod,
    check_tensorflow,
)

CPU = {"tensorflow": "2.21.0", "cuda": None, "gpus": [], "backend": "tensorflow", "horovod": None}
GPU = {**CPU, "cuda": "12.5.1", "gpus": ["H100"]}
BUILT = {"gloo": True, "mpi": False, "nccl": 22707}


def one(findings: Any) -> Finding:
    (finding,) = findings
    return finding


@pytest.fixture(autouse=True)
def no_gpu_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(frameworks, "_KERNEL_DRIVER", tmp_path / "version")


def test_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    findings = list(check_frameworks())
    assert [each.subject for each in findings] == ["TensorFlow", "GPUs", "Horovod"]
    assert PROBLEM not in {each.level for each in findings}


def test_another_backend_of_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    version, backend = check_tensorflow({**CPU, "backend": "jax"})
    assert version == Finding(OK, "TensorFlow", "2.21.0")
    assert backend.level == PROBLEM
    assert "jax, by KERAS_BACKEND" in backend.text


def test_a_tensorflow_that_ends_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for script, text in (
        ("kill -ILL $$", "its import ends with SIGILL (it needs a CPU with AVX)"),
        ("echo 'ImportError: no' >&2; exit 1", "cannot be imported: ImportError: no"),
    ):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        finding = one(check_frameworks())
        assert (finding.level, finding.text) == (PROBLEM, text)


@pytest.mark.parametrize(
    ("report", "driver", "error", "level", "text"),
    [
        (CPU, None, "", OK, "no NVIDIA driver"),
        (GPU, "12.8", "", OK, "H100; driver for CUDA 12.8"),
        ({**GPU, "gpus": []}, "11.4", "", PROBLEM, "runs CUDA 11.4 at most"),
        ({**GPU, "gpus": []}, "13.0", "Cannot dlopen some", PROBLEM, "driver: Cannot dlopen some"),
        (CPU, "13.0", "", PROBLEM, "is built without CUDA"),
    ],
)
def test_gpus(report: Any, driver: str | None, error: str, level: str, text: str) -> None:
    finding = one(check_gpus(report, driver, error))
    assert finding.level == level
    assert text in finding.text
    assert bool(finding.remedy) == (level != OK)


def test_hidden_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    finding = one(check_gpus({**GPU, "gpus": []}, "12.8", ""))
    assert (finding.level, finding.text) == (WARNING, "none is visible: CUDA_VISIBLE_DEVICES=-1")


def test_a_container_without_the_library_of_the_driver(tmp_path: Path) -> None:
    (tmp_path / "version").touch()
    assert one(check_gpus(CPU, None, "")).level == PROBLEM


@pytest.mark.parametrize(
    ("report", "nccl", "level", "text"),
    [
        ({**CPU, "horovod": {"error": "ImportError: no\nmore"}}, None, PROBLEM, "ImportError: no"),
        ({**CPU, "horovod": {**BUILT, "gloo": False}}, None, WARNING, "without"),
        ({**GPU, "horovod": {**BUILT, "nccl": 0}}, None, WARNING, "memory of the CPU"),
        ({**GPU, "horovod": BUILT}, "2.26.5", PROBLEM, "newer than the installed 2.26.5"),
    ],
)
def test_a_horovod_that_does_not_fit(report: Any, nccl: str | None, level: str, text: str) -> None:
    *_, finding = check_horovod(report, nccl)
    assert finding.level == level
    assert text in finding.text
    assert "distrib horovod build" in finding.remedy


def test_a_horovod_that_fits() -> None:
    assert one(check_horovod(CPU, None)).level == OK
    assert one(check_horovod({**GPU, "horovod": BUILT}, "2.27.7")) == Finding(
        OK, "Horovod", "built with Gloo, NCCL"
    )
