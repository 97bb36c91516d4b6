"""CUDA and NCCL for a Horovod that reduces tensors in GPU memory.

Horovod has to use the major version of CUDA that TensorFlow uses, because both work on the same
streams. A toolkit of that version is used as it is. Where there is none, one is put together: the
package index has the runtime of CUDA 12, which `tensorflow[and-cuda]` brings, but no compiler of
CUDA 12. Its compiler of CUDA 13.0 will do with the headers and the runtime of CUDA 12: the code
that it generates calls the same functions of the runtime, with the same declarations, which CUDA
12.5 and newer have. Kernels that it compiles need a driver for CUDA 13.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import ConfigurationError

from .cuda_adapter import adapter_digest
from .nvidia_driver import driver_version
from .recipe import GPU_VARIABLE, tensorflow_distribution

# The compiler of the package index, and the first CUDA version of the drivers that run its kernels.
NVCC_VERSION = "13.0.88"
NVCC_PACKAGES = (
    *(f"{name}=={NVCC_VERSION}" for name in ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm")),
    "nvidia-cuda-cccl==13.0.85",
)
# Where NVIDIA's installers link the toolkit.
INSTALLED = "/usr/local/cuda/bin"
WITH_CUDA = "pip install 'tensorflow[and-cuda]'"
ANOTHER_COMPILER = "set HOROVOD_CUDA_HOME to the folder of a CUDA toolkit, or build with --no-gpu."


@dataclass(frozen=True)
class Cuda:
    """What a build for GPUs uses.

    Attributes:
        toolkit: Folder of a CUDA toolkit of the major version that TensorFlow uses; `None` if one
            has to be put together.
        nvcc: Version of the compiler.
        runtime: Folder of the CUDA runtime: `include`, and `lib` or `lib64`.
        runtime_version: Its version, such as `"12.9"`.
        nccl_header: Path of `nccl.h`.
        nccl_library: Path of `libnccl.so.2`.
        nccl_version: Version, such as `"2.32.3"`.
    """

    toolkit: Path | None
    nvcc: str
    runtime: Path
    runtime_version: str
    nccl_header: Path
    nccl_library: Path
    nccl_version: str

    @property
    def versions(self) -> dict[str, str]:
        """What of it changes the wheel."""
        return {
            "nvcc": self.nvcc,
            "runtime": self.runtime_version,
            "nccl": self.nccl_version,
            "run_path": self.nccl_run_path,
            "adapter": adapter_digest(),
        }

    @property
    def nccl_run_path(self) -> str:
        """Where the loader looks for NCCL: relative to Horovod's library if in its environment."""
        folder = self.nccl_library.parent
        if not folder.is_relative_to(_site_packages()):
            return str(folder)
        library = _site_packages() / "horovod" / "tensorflow"
        return f"$ORIGIN/{os.path.relpath(folder, library)}"


def wants_gpu(given: bool | None, environment: Mapping[str, str]) -> bool:
    """Return whether to build for GPUs.

    Args:
        given: `--gpu` or `--no-gpu`. With `None`, variables such as `HOROVOD_GPU_OPERATIONS`
            decide, then whether this machine has an NVIDIA driver and a CUDA compiler of the
            version that TensorFlow uses: without being asked to, a build downloads no compiler.
        environment: Variables of the build.

    Raises:
        ConfigurationError: If `--no-gpu` contradicts a variable, or `HOROVOD_CUDA_HOME` does not
            fit.
    """
    variables = sorted(name for name in environment if GPU_VARIABLE.fullmatch(name))
    if given is False and variables:
        raise ConfigurationError(f"--no-gpu contradicts {', '.join(variables)}: unset it")
    if given is None and not variables:
        needed = _cuda_of_tensorflow()
        return bool(needed and driver_version() and find_nvcc(environment, needed))
    return given is not False


def find_cuda(environment: Mapping[str, str]) -> Cuda:
    """Return what a build for GPUs uses, without changing anything.

    Args:
        environment: `HOROVOD_CUDA_HOME`, `CUDA_HOME` and `PATH` are searched for a compiler, and
            `HOROVOD_NCCL_HOME` for NCCL. Without the latter, the NCCL of this Python environment
            comes before the system's.

    Raises:
        ConfigurationError: If something is missing, or does not fit TensorFlow or the driver.
    """
    needed = _cuda_of_tensorflow()
    if needed is None:
        tensorflow = tensorflow_distribution()
        raise ConfigurationError(
            f"{tensorflow.name} {tensorflow.version} cannot use NVIDIA GPUs: {WITH_CUDA}, or build "
            "Horovod with --no-gpu."
        )
    nvcc = find_nvcc(environment, needed)
    if nvcc:
        toolkit, version = nvcc.parents[1], nvcc_version(nvcc)
    else:
        toolkit, version = None, NVCC_VERSION
    runtime = toolkit or _site_packages() / "nvidia" / "cuda_runtime"
    _check_driver(version, needed)
    header, library = _find_nccl(environment, runtime)
    return Cuda(
        toolkit=toolkit,
        nvcc=version,
        runtime=runtime,
        runtime_version=_runtime_version(runtime, needed),
        nccl_header=header,
        nccl_library=library,
        nccl_version=".".join(_define(header, f"NCCL_{n}") for n in ("MAJOR", "MINOR", "PATCH")),
    )


def find_nvcc(environment: Mapping[str, str], needed: int) -> Path | None:
    """Return the path of a CUDA compiler, `None` if there is none of the needed version.

    Args:
        environment: `HOROVOD_CUDA_HOME`, `CUDA_HOME` and `PATH` are searched.
        needed: Major version.

    Raises:
        ConfigurationError: If `HOROVOD_CUDA_HOME` has none, or one of another version, or if a
            compiler does not run.
    """
    home = environment.get("HOROVOD_CUDA_HOME")
    if home is None:
        fits = (nvcc for nvcc in _compilers(environment) if _major(nvcc_version(nvcc)) == needed)
        return next(fits, None)
    nvcc = Path(home) / "bin" / "nvcc"
    if not os.access(nvcc, os.X_OK):
        raise ConfigurationError(
            f"HOROVOD_CUDA_HOME={home} has no bin/nvcc: name the folder of a CUDA toolkit, or "
            "unset the variable."
        )
    version = nvcc_version(nvcc)
    if _major(version) != needed:
        raise ConfigurationError(
            f"HOROVOD_CUDA_HOME={home} is CUDA {version}, but TensorFlow "
            f"{tensorflow_distribution().version} uses CUDA {needed}: name a toolkit of that "
            "version, or unset the variable to build with a compiler of the package index."
        )
    return nvcc


def _compilers(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the paths of all compilers, those first that take precedence."""
    home = environment.get("CUDA_HOME")
    path = [f"{home}/bin"] if home else []
    path += [*environment.get("PATH", os.defpath).split(os.pathsep), INSTALLED]
    for folder in filter(None, path):
        found = shutil.which("nvcc", path=folder)
        if found:
            yield Path(found).resolve()


def nvcc_version(nvcc: Path) -> str:
    """Return a compiler's version, such as `"12.6.85"`.

    Raises:
        ConfigurationError: If it does not run or does not say so.
    """
    try:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    except OSError as error:
        raise ConfigurationError(f"{nvcc} does not run ({error}): {ANOTHER_COMPILER}") from error
    found = re.search(r"\bV(\d+\.\d+\.\d+)", done.stdout)
    if found is None:
        raise ConfigurationError(
            f"{nvcc} --version names no version: {ANOTHER_COMPILER} It said: "
            f"{done.stdout}{done.stderr}"
        )
    return found[1]


def _cuda_of_tensorflow() -> int | None:
    """Return the major version of the CUDA that the installed TensorFlow uses, if it does."""
    tensorflow = tensorflow_distribution()
    for requirement in tensorflow.requires or ():
        found = re.match(r"nvidia-cuda-runtime-cu(\d+)\b", requirement)
        if found and "cpu" not in tensorflow.name:
            return int(found[1])
    return None


def _check_driver(nvcc: str, needed: int) -> None:
    driver = driver_version()
    if driver is not None and _major(driver) < _major(nvcc):
        raise ConfigurationError(
            f"the NVIDIA driver of this machine runs CUDA {driver}, which is older than what nvcc "
            f"{nvcc} compiles for: update the driver, set HOROVOD_CUDA_HOME to a CUDA {needed} "
            "toolkit, or build with --no-gpu."
        )


def _runtime_version(runtime: Path, needed: int) -> str:
    header = runtime / "include" / "cuda_runtime_api.h"
    if not header.is_file() or not list(runtime.glob("lib*/libcudart_static.a")):
        raise ConfigurationError(
            f"{runtime} has not the CUDA runtime that TensorFlow uses: {WITH_CUDA}, set "
            f"HOROVOD_CUDA_HOME to a CUDA {needed} toolkit, or build with --no-gpu."
        )
    version = int(_define(header, "CUDART_VERSION"))
    return f"{version // 1000}.{version % 1000 // 10}"


def _find_nccl(environment: Mapping[str, str], runtime: Path) -> tuple[Path, Path]:
    """Return the paths of NCCL's header and library."""
    given = environment.get("HOROVOD_NCCL_HOME")
    package = _site_packages() / "nvidia" / "nccl"
    places = [Path(given)] if given else [package, runtime, Path("/usr"), Path("/usr/local")]
    for place in places:
        header = place / "include" / "nccl.h"
        library = next(_nccl_libraries(place), None)
        if header.is_file() and library:
            return header, library
    searched = f"HOROVOD_NCCL_HOME={given} has no" if given else "cannot find"
    raise ConfigurationError(
        f"{searched} NCCL (include/nccl.h, lib/libnccl.so.2): {WITH_CUDA}, set HOROVOD_NCCL_HOME "
        "to the folder of another NCCL, or build with --no-gpu."
    )


def _nccl_libraries(place: Path) -> Iterator[Path]:
    folders = ("lib", "lib64", f"lib/{sysconfig.get_config_var('MULTIARCH')}")
    return filter(Path.is_file, (place / folder / "libnccl.so.2" for folder in folders))


def _define(header: Path, name: str) -> str:
    """Return the number that a header defines a name as."""
    found = re.search(rf"^\s*#define\s+{name}\s+(\d+)", header.read_text(), re.MULTILINE)
    if found is None:
        raise ConfigurationError(f"{header} does not define {name}: is it complete?")
    return found[1]


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _site_packages() -> Path:
    return Path(str(tensorflow_distribution().locate_file("")))
