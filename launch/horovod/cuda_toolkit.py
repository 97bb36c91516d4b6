"""Lays out what `cuda.py` has found so that Horovod's build finds it.

Horovod carries a copy of the CUDA runtime, which the linker takes whole, before all other
libraries: TensorFlow's libraries define the same functions, and Horovod's build would use those of
them that come first, and a runtime of its own for the rest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from distrib.errors import ConfigurationError

from .cuda import NVCC_PACKAGES, NVCC_VERSION, Cuda
from .pip import pip

ADAPTER = "cuda_adapter.h"
# One for each major version that the compiler of the package index knows: later minor versions of
# a GPU run the code of earlier ones, and newer GPUs compile that of the last one when it is loaded.
ARCHITECTURES = "75,80,90,100,110,120"


def adapter() -> str:
    """Return the header that mends what keeps a build for GPUs from working."""
    return (resources.files(__package__) / ADAPTER).read_text()


def cuda_variables(cuda: Cuda, scratch: Path, flags: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a build for GPUs that differ from its flags.

    Args:
        cuda: What it uses.
        scratch: Folder for temporary files.
        flags: Of the recipe.

    Raises:
        ConfigurationError: If pip cannot install the compiler.
    """
    toolkit = cuda.toolkit or _put_together(cuda, scratch / "cuda")
    nvcc = toolkit / "bin" / "nvcc"
    nccl = scratch / "nccl" / "libnccl.so"  # Packages of Python have no link for the linker.
    nccl.parent.mkdir()
    nccl.symlink_to(cuda.nccl_library)
    cudart = next(cuda.runtime.glob("lib*/libcudart_static.a"))
    runtime = f"-Wl,--whole-archive {cudart} -Wl,--no-whole-archive -lpthread -ldl -lrt"
    run_path = f"-Wl,-rpath,{cuda.nccl_run_path}"
    architectures = {} if cuda.toolkit else {"HOROVOD_BUILD_CUDA_CC_LIST": ARCHITECTURES}
    return {
        **{name: value for name, value in architectures.items() if name not in flags},
        "HOROVOD_CUDA_HOME": str(toolkit),
        "CUDAToolkit_ROOT": str(toolkit),
        "CUDACXX": str(nvcc),
        "PATH": os.pathsep.join([str(nvcc.parent), os.environ.get("PATH", os.defpath)]),
        "HOROVOD_NCCL_INCLUDE": str(cuda.nccl_header.parent),
        "HOROVOD_NCCL_LIB": str(nccl.parent),
        "HOROVOD_NCCL_LINK": "SHARED",
        "LDFLAGS": " ".join([runtime, run_path, flags.get("LDFLAGS", "")]),
    }


def _put_together(cuda: Cuda, folder: Path) -> Path:
    """Install the package index's compiler, beside the headers and libraries of the runtime."""
    print(f"installing nvcc {NVCC_VERSION} for this build", flush=True)
    done = subprocess.run(
        pip("install", "--no-deps", "--target", str(folder), *NVCC_PACKAGES),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise ConfigurationError(
            f"pip cannot install a CUDA compiler ({', '.join(NVCC_PACKAGES)}). Install a CUDA "
            "toolkit and set HOROVOD_CUDA_HOME to its folder, or build with --no-gpu. Output:\n"
            f"{done.stdout}"
        )
    (toolkit,) = (nvcc.parents[1] for nvcc in folder.glob("nvidia/*/bin/nvcc"))
    for name, target in (("include", "include"), ("lib", "lib64")):
        shutil.copytree(
            cuda.runtime / name, toolkit / target, copy_function=os.symlink, dirs_exist_ok=True
        )
    (library,) = (toolkit / "lib64").glob("libcudart.so.*")
    library.with_name("libcudart.so").symlink_to(library.name)
    return toolkit
