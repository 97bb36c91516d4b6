"""What a build for GPUs looks for: a toolkit, NCCL, and a TensorFlow with its libraries of CUDA."""

from __future__ import annotations

from pathlib import Path

RUNTIME_HEADER = "#define CUDART_VERSION  {number}\n"
NCCL_HEADER = "#define NCCL_MAJOR 2\n#define NCCL_MINOR 32\n#define NCCL_PATCH 3\n"
REQUIRES = 'nvidia-cuda-runtime-cu12<13.0,>=12.5.82; extra == "and-cuda"'


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def nvcc(path: Path, version: str) -> Path:
    says = f"Cuda compilation tools, release {version[:4]}, V{version}"
    return write(path, f"#!/bin/sh\necho '{says}'\n", 0o755)


def runtime(folder: Path, number: int, library: str = "lib") -> Path:
    write(folder / "include" / "cuda_runtime_api.h", RUNTIME_HEADER.format(number=number))
    write(folder / library / "libcudart_static.a", "")
    write(folder / library / f"libcudart.so.{number // 1000}", "")
    return folder


def toolkit(folder: Path, version: str) -> Path:
    nvcc(folder / "bin" / "nvcc", version)
    major, minor, _ = version.split(".")
    return runtime(folder, int(major) * 1000 + int(minor) * 10, "lib64")


def nccl(folder: Path, library: str = "lib") -> Path:
    write(folder / "include" / "nccl.h", NCCL_HEADER)
    write(folder / library / "libnccl.so.2", "")
    return folder


def tensorflow(site: Path, requires: str = REQUIRES, name: str = "tensorflow") -> Path:
    """Make a folder of packages with TensorFlow, as far as its metadata goes."""
    information = site / f"{name.replace('-', '_')}-2.21.0.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 2.21.0"]
    lines += [f"Requires-Dist: {requires}"] if requires else []
    write(information / "METADATA", "\n".join(lines) + "\n")
    write(information / "top_level.txt", "tensorflow\n")
    return site


def packages(site: Path) -> Path:
    """Add what `tensorflow[and-cuda]` brings."""
    runtime(site / "nvidia" / "cuda_runtime", 12090)
    nccl(site / "nvidia" / "nccl")
    return site
