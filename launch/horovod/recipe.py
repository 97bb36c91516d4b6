"""Which Horovod wheel a Python environment needs: its versions, machine and build flags."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata

from distrib.errors import ConfigurationError

VERSION = "0.28.1"
# Of the source distribution.
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
DEFAULT_FLAGS = (
    *("HOROVOD_WITH_TENSORFLOW", "HOROVOD_WITHOUT_PYTORCH", "HOROVOD_WITHOUT_MXNET"),
    "HOROVOD_WITH_GLOO",
)
# Horovod's other variables, such as HOROVOD_RANK, configure running ranks and change no wheel.
BUILD_VARIABLE = re.compile(
    "HOROVOD_(WITH|WITHOUT|GPU|NCCL|CUDA|ROCM|NVTX|BUILD|ALLOW_MIXED|SKIP|LOCAL)(_.*)?"
    "|HOROVOD_(CPU_OPERATIONS|DEBUG)|CXX|CXXFLAGS|LDFLAGS|CPLUS_INCLUDE_PATH"
)
# Which operations on tensors in GPU memory Horovod gets, such as HOROVOD_GPU_OPERATIONS.
GPU_VARIABLE = re.compile("HOROVOD_GPU_.+")


@dataclass(frozen=True)
class Recipe:
    """All inputs that change a wheel.

    Attributes:
        horovod: Version; each has one source distribution.
        tensorflow: Version.
        python: The interpreter's ABI and the machine, as in the names of compiled modules.
        libc: Name and version.
        mpi: Path of the MPI compiler; empty without MPI.
        flags: Environment variables that the build reads.
        cuda: Versions of the parts of a build for GPUs; `None` in a build for CPUs.
    """

    horovod: str
    tensorflow: str
    python: str
    libc: str
    mpi: str
    flags: Mapping[str, str]
    cuda: Mapping[str, str] | None = None

    @property
    def key(self) -> str:
        """Name of the wheel's folder in a cache."""
        inputs = {name: value for name, value in asdict(self).items() if value is not None}
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        return f"{self.horovod}-tensorflow-{self.tensorflow}-{self.python}-{digest[:12]}"


def recipe_for(environment: Mapping[str, str], cuda: Mapping[str, str] | None = None) -> Recipe:
    """Return the recipe of this Python environment's wheel.

    Args:
        environment: Its build flags are kept; others get their defaults. MPI is built in if its
            compiler is on the `PATH`.
        cuda: Versions of the parts of a build for GPUs. Defaults to `None`: a build for CPUs.

    Raises:
        ConfigurationError: If TensorFlow is not installed.
    """
    mpicxx = _mpi_compiler(environment)
    flags = {n: value for n, value in environment.items() if BUILD_VARIABLE.fullmatch(n)}
    for flag in (*DEFAULT_FLAGS, "HOROVOD_WITH_MPI" if mpicxx else "HOROVOD_WITHOUT_MPI"):
        verb, _, part = flag.removeprefix("HOROVOD_").partition("_")
        if f"HOROVOD_{'WITHOUT' if verb == 'WITH' else 'WITH'}_{part}" not in flags:
            flags.setdefault(flag, "1")
    if cuda and not any(GPU_VARIABLE.fullmatch(name) for name in flags):
        flags["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    return Recipe(
        horovod=VERSION,
        tensorflow=tensorflow_distribution().version,
        python=str(sysconfig.get_config_var("SOABI")),
        libc="-".join(platform.libc_ver()),
        mpi=mpicxx if "HOROVOD_WITH_MPI" in flags else "",
        flags=flags,
        cuda=cuda,
    )


def tensorflow_distribution() -> metadata.Distribution:
    """Return the installed distribution, which may be `tensorflow-cpu`, without importing it.

    Raises:
        ConfigurationError: If TensorFlow is not installed.
    """
    # Not `packages_distributions()`, which takes half a second for all packages' lists of files.
    for distribution in metadata.distributions():
        if "tensorflow" in (distribution.read_text("top_level.txt") or "").split():
            return distribution
    raise ConfigurationError(
        f"{sys.prefix} has no TensorFlow to build Horovod for: pip install tensorflow"
    )


def _mpi_compiler(environment: Mapping[str, str]) -> str:
    """Return the real path of an MPI compiler that finds `mpi.h`, which Debian packs separately."""
    path = shutil.which("mpicxx", path=environment.get("PATH"))
    if path is None:
        return ""
    command, program = [path, "-x", "c++", "-E", "-"], b"#include <mpi.h>\n"
    tried = subprocess.run(command, input=program, capture_output=True, env=environment)
    return os.path.realpath(path) if tried.returncode == 0 else ""
