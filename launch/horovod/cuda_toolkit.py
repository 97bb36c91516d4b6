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
from pathlib import Path

from distrib.errors import ConfigurationError

from .cuda import NVCC_PACKAGES, NVCC_VERSION, Cuda
from .pip import pip

# One for each major version that the compiler of the package index knows: later minor versions of
# a GPU run the code of earlier ones, and newer GPUs compile that of the last one when it is loaded.
ARCHITECTURES = "75,80,90,100,110,120"


def cuda_variables(cuda: Cuda, scratch: Path, flags: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a build for GPUs that differ from its flags.

    Args:
        cuda: What it uses.
        scratch: Folder for temporary files.
        flags: Of the recipe.

    Raises:
        ConfigurationError: If the compiler cannot be installed.
    """
    toolkit = cuda.toolkit or _put_together(cuda, scratch / "cuda")
    nvcc = toolkit / "bin" / "nvcc"
    nccl = scratch / "nccl" / "libnccl.so"  # Packages of Python have no link for the linker.
    nccl.parent.mkdir()
    nccl.symlink_to(cuda.nccl_library)
    cudart = next(cuda.runtime.glob("lib*/libcudart_static.a"))
    runtime = f"-Wl,--whole-archive {cudart} -Wl,--no-whole-archive -lpthread -ldl -lrt"
    run_path = f"-Wl,-rpath,{cuda.nccl_run_path}"
    searched = [str(nccl.parent), os.environ.get("LIBRARY_PATH", "")]
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
        # CMake adds no folder to the library's run path that the compiler searches anyway.
        "LIBRARY_PATH": os.pathsep.join(filter(None, searched)),
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
        raise _without_compiler(f"pip cannot install it. Output:\n{done.stdout}")
    toolkit = next((nvcc.parents[1] for nvcc in folder.glob("nvidia/*/bin/nvcc")), None)
    if toolkit is None:
        raise _without_compiler("the packages have no nvidia/*/bin/nvcc")
    library = next(cuda.runtime.glob("lib/libcudart.so.*"), None)
    if library is None:
        raise _without_compiler(f"{cuda.runtime}/lib has no libcudart.so for it")
    try:
        for name, target in (("include", "include"), ("lib", "lib64")):
            shutil.copytree(
                cuda.runtime / name, toolkit / target, copy_function=os.symlink, dirs_exist_ok=True
            )
        (toolkit / "lib64" / "libcudart.so").symlink_to(library)
    except OSError as error:  # `shutil.Error`, too: of files that both have.
        raise _without_compiler(f"{cuda.runtime} cannot be linked beside it: {error}") from error
    return toolkit


def _without_compiler(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"cannot put a CUDA compiler together ({', '.join(NVCC_PACKAGES)}): {reason}\n"
        "Install a CUDA toolkit and set HOROVOD_CUDA_HOME to its folder, or build with --no-gpu."
    )
