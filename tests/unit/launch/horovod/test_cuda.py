import sys
from pathlib import Path

import gpu_parts
import pytest

from distrib.errors import ConfigurationError
from distrib.launch.cli import main
from distrib.launch.horovod import cuda
from distrib.launch.horovod.cuda import NVCC_VERSION, find_cuda, find_nvcc, wants_gpu
from distrib.launch.horovod.cuda_adapter import adapter_digest


@pytest.fixture(autouse=True)
def _neither_driver_nor_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "driver_version", lambda: None)
    monkeypatch.setattr(cuda, "INSTALLED", str(tmp_path / "nothing"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages with a TensorFlow, and no libraries of CUDA."""
    site = gpu_parts.tensorflow(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site))
    return site


def test_a_compiler_is_looked_for_by_variables_and_then_on_the_path(tmp_path: Path) -> None:
    environment = {"PATH": ""}
    for name, key, value in (
        ("path", "PATH", "{}/bin"),
        ("home", "CUDA_HOME", "{}"),
        ("named", "HOROVOD_CUDA_HOME", "{}"),
    ):
        folder = gpu_parts.toolkit(tmp_path / name, "12.6.85")
        environment[key] = value.format(folder)
        assert find_nvcc(environment, 12) == folder / "bin" / "nvcc"


def test_a_named_toolkit_without_a_compiler_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"HOROVOD_CUDA_HOME={tmp_path} has no bin/nvcc"):
        find_nvcc({"HOROVOD_CUDA_HOME": str(tmp_path)}, 12)


def test_compilers_of_other_versions_are_passed_over(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_parts.packages(site)
    monkeypatch.setattr(cuda, "INSTALLED", str(tmp_path / "installed" / "bin"))
    installed = gpu_parts.toolkit(tmp_path / "installed", "12.6.85")
    others = {name: gpu_parts.toolkit(tmp_path / name, "13.1.80") for name in ("home", "path")}
    environment = {"CUDA_HOME": str(others["home"]), "PATH": f"/nowhere:{others['path']}/bin"}
    assert find_cuda(environment).toolkit == installed
    second = gpu_parts.toolkit(tmp_path / "second", "12.9.86")
    environment["PATH"] += f":{second}/bin"
    assert find_cuda(environment).toolkit == second


def test_a_toolkit_of_tensorflows_version_is_used_as_it_is(site: Path, tmp_path: Path) -> None:
    gpu_parts.packages(site)
    folder = gpu_parts.toolkit(tmp_path / "cuda", "12.6.85")
    found = find_cuda({"PATH": f"{folder}/bin"})
    assert found.toolkit == found.runtime == folder
    assert found.nccl_library == site / "nvidia/nccl/lib/libnccl.so.2"
    assert found.versions == {
        "nvcc": "12.6.85",
        "runtime": "12.6",
        "nccl": "2.32.3",
        "run_path": "$ORIGIN/../../nvidia/nccl/lib",
        "adapter": adapter_digest(),
    }


@pytest.mark.parametrize("version", [None, "13.1.80", "11.8.89"])
def test_without_one_the_compiler_of_the_package_index_meets_tensorflows_runtime(
    site: Path, tmp_path: Path, version: str | None
) -> None:
    gpu_parts.packages(site)
    if version is not None:
        gpu_parts.toolkit(tmp_path / "cuda", version)
    found = find_cuda({"PATH": f"{tmp_path}/cuda/bin"})
    assert found.toolkit is None
    assert found.runtime == site / "nvidia/cuda_runtime"
    assert (found.nvcc, found.runtime_version) == (NVCC_VERSION, "12.9")


def test_a_named_toolkit_of_another_version_is_an_error(site: Path, tmp_path: Path) -> None:
    gpu_parts.packages(site)
    folder = gpu_parts.toolkit(tmp_path / "cuda", "13.1.80")
    with pytest.raises(ConfigurationError, match=r"is CUDA 13.1.80, but .*uses CUDA 12: name a"):
        find_cuda({"HOROVOD_CUDA_HOME": str(folder)})


@pytest.mark.parametrize("text", ["nvcc: no license", ""])
def test_a_compiler_that_names_no_version_is_an_error(
    site: Path, tmp_path: Path, text: str
) -> None:
    folder = gpu_parts.toolkit(tmp_path / "cuda", "12.6.85")
    gpu_parts.write(folder / "bin/nvcc", f"#!/bin/sh\necho '{text}'\n", 0o755)
    with pytest.raises(ConfigurationError, match=r"names no version: set HOROVOD_CUDA_HOME"):
        find_cuda({"HOROVOD_CUDA_HOME": str(folder)})


def test_no_runtime_is_an_error(site: Path) -> None:
    gpu_parts.nccl(site / "nvidia" / "nccl")
    with pytest.raises(ConfigurationError, match=r"CUDA runtime.*install 'tensorflow\[and-cuda\]'"):
        find_cuda({"PATH": ""})


def test_no_nccl_is_an_error(site: Path, tmp_path: Path) -> None:
    gpu_parts.runtime(site / "nvidia" / "cuda_runtime", 12090)
    named = {"PATH": "", "HOROVOD_NCCL_HOME": str(tmp_path)}
    with pytest.raises(ConfigurationError, match=f"HOROVOD_NCCL_HOME={tmp_path} has no NCCL"):
        find_cuda(named)
    gpu_parts.nccl(tmp_path, "lib64")
    found = find_cuda(named)
    assert found.nccl_run_path == f"{tmp_path}/lib64"


@pytest.mark.parametrize(
    ("requires", "name"), [("", "tensorflow"), (gpu_parts.REQUIRES, "tensorflow-cpu")]
)
def test_a_tensorflow_for_cpus_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requires: str, name: str
) -> None:
    site = gpu_parts.tensorflow(tmp_path / "site", requires, name)
    monkeypatch.setattr(sys, "path", [str(site)])
    with pytest.raises(ConfigurationError, match=f"{name} 2.21.0 cannot use NVIDIA GPUs"):
        find_cuda({"PATH": ""})


@pytest.mark.parametrize(("driver", "version"), [("12.8", None), ("11.4", "12.6.85")])
def test_a_driver_older_than_the_compiler_is_an_error(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, version: str | None
) -> None:
    gpu_parts.packages(site)
    monkeypatch.setattr(cuda, "driver_version", lambda: driver)
    if version is not None:
        gpu_parts.toolkit(tmp_path / "cuda", version)
    with pytest.raises(ConfigurationError, match=f"driver of this machine runs CUDA {driver}"):
        find_cuda({"PATH": f"{tmp_path}/cuda/bin"})


def test_a_driver_and_a_fitting_compiler_make_a_build_for_gpus(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_nvcc = {"PATH": f"{gpu_parts.toolkit(tmp_path / 'fits', '12.6.85')}/bin"}
    with_newer = {"PATH": f"{gpu_parts.toolkit(tmp_path / 'newer', '13.1.80')}/bin"}
    assert not wants_gpu(None, with_nvcc)
    assert wants_gpu(True, {})
    assert wants_gpu(None, {"HOROVOD_GPU_OPERATIONS": "NCCL"})
    monkeypatch.setattr(cuda, "driver_version", lambda: "13.1")
    assert wants_gpu(None, with_nvcc)
    assert not wants_gpu(None, with_newer)
    assert not wants_gpu(None, {"PATH": ""})
    assert not wants_gpu(False, with_nvcc)
    with pytest.raises(ConfigurationError, match="--no-gpu contradicts HOROVOD_GPU_ALLREDUCE"):
        wants_gpu(False, {"HOROVOD_GPU_ALLREDUCE": "NCCL"})
    with pytest.raises(ConfigurationError, match=r"is CUDA 13.1.80, but .*uses CUDA 12: name a"):
        wants_gpu(None, {"HOROVOD_CUDA_HOME": f"{tmp_path}/newer"})


def test_nothing_is_built_for_gpus_that_tensorflow_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = gpu_parts.tensorflow(tmp_path / "site", name="tensorflow-cpu")
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setattr(cuda, "driver_version", lambda: "12.8")
    folder = gpu_parts.toolkit(tmp_path / "cuda", "12.6.85")
    assert not wants_gpu(None, {"PATH": f"{folder}/bin"})


def test_the_command_says_what_is_missing(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HOROVOD_CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    assert main(["horovod", "build", "--gpu"]) == 78
    assert "pip install 'tensorflow[and-cuda]'" in capsys.readouterr().err
