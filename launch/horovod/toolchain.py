"""Build tools of Horovod, and the environment variables that let its build find everything.

Horovod's newest release is older than the TensorFlow that it has to work with, and its build stops
at headers that TensorFlow has moved. A CPU build uses nothing that these headers declare, so empty
files in their old places are enough. In a GPU build one of them holds `cuda_adapter.h`. The source
distribution stays as published.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from distrib.errors import ConfigurationError

from .cuda import Cuda
from .cuda_adapter import adapter
from .cuda_toolkit import cuda_variables
from .recipe import Recipe, tensorflow_distribution

# Headers of XLA that Horovod 0.28.1 includes; all uses stand under `#if HAVE_GPU`. TensorFlow 2.21
# has the first elsewhere, and those of the others that it has come before these files.
ADAPTED_HEADER = "client/xla_builder.h"
MOVED_HEADERS = (
    ADAPTED_HEADER,
    "service/custom_call_target_registry.h",
    "service/hlo.pb.h",
    "shape.h",
    "xla_data.pb.h",
)
# Modules that Horovod's setup.py imports, and their packages.
MODULES = {name: name for name in ("cloudpickle", "packaging", "psutil", "setuptools")}
MODULES["yaml"] = "pyyaml"
MAX_JOBS = 8  # Horovod's own limit: compilers need memory as well as cores.


def find_tools(environment: Mapping[str, str], for_gpu: bool = False) -> dict[str, str]:
    """Return the variables that name the build tools.

    Args:
        environment: Variables of the build.
        for_gpu: Whether it is a build for GPUs, the result of which is looked at with `nm`.
            Defaults to `False`.

    Raises:
        ConfigurationError: If a tool is missing; says how to install it.
    """
    path = environment.get("PATH")
    beside_python = Path(sys.executable).with_name("cmake")  # From the package index.
    cmake = environment.get("HOROVOD_CMAKE") or shutil.which(beside_python)
    cmake = cmake or shutil.which("cmake", path=path)
    compilers = [environment["CXX"]] if "CXX" in environment else ["c++", "g++", "clang++"]
    packages = []
    if not any(shutil.which(name, path=path) for name in compilers):
        packages.append("g++")
    if not shutil.which("make", path=path):
        packages.append("make")
    if for_gpu and not shutil.which("nm", path=path):
        packages.append("binutils")
    modules = [MODULES[name] for name in MODULES if importlib.util.find_spec(name) is None]
    if cmake is None:
        modules.append("cmake")
    advice = [f"apt-get install {' '.join(packages)}"] if packages else []
    advice += [f"{sys.executable} -m pip install {' '.join(modules)}"] if modules else []
    if advice:
        raise ConfigurationError(
            f"building Horovod needs {', '.join(packages + modules)}, which cannot be found:\n"
            + "\n".join(f"  {line}" for line in advice)
        )
    return {"HOROVOD_CMAKE": str(cmake)}


def build_variables(recipe: Recipe, scratch: Path, cuda: Cuda | None = None) -> dict[str, str]:
    """Return the variables of the build, besides its tools.

    Args:
        recipe: Of the wheel.
        scratch: Folder for temporary files.
        cuda: What a build for GPUs uses. Defaults to `None`: a build for CPUs.

    Raises:
        ConfigurationError: If a CUDA compiler cannot be installed.
    """
    include = Path(str(tensorflow_distribution().locate_file("tensorflow/include")))
    external = include / "external"
    moved = scratch / "moved"
    folders = [external / "highwayhash", external / "farmhash_archive" / "src", moved]
    for name in MOVED_HEADERS:
        header = moved / "tensorflow" / "compiler" / "xla" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(adapter() if cuda and name == ADAPTED_HEADER else "")
    given = recipe.flags.get("CPLUS_INCLUDE_PATH")
    cores = len(os.sched_getaffinity(0))
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(min(MAX_JOBS, cores))
    return {
        **recipe.flags,
        **(cuda_variables(cuda, scratch, recipe.flags) if cuda else {}),
        "CPLUS_INCLUDE_PATH": ":".join([*([given] if given else []), *map(str, folders)]),
        # Gloo requires CMake 2.8, which CMake 4 refuses unless told that 3.5 will do.
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        "MAKEFLAGS": f"-j{jobs}",  # Overrides those of a `make` that calls this command.
        "TMPDIR": str(scratch),
    }
