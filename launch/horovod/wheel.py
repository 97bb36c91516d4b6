"""A Horovod wheel for the installed TensorFlow, built once and kept.

Horovod's newest release is older than the TensorFlow that it has to work with, so its build stops
at headers which TensorFlow has moved. Nothing in a CPU build uses what they declare: it is enough
that they are found. The source distribution itself stays as it was published.

A wheel fits one TensorFlow, one Python and one set of build flags. So it is kept in a cache under a
name that stands for all of these, and comes there in one step: a build that was killed leaves
nothing that looks like a wheel.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from distrib.errors import ConfigurationError
from distrib.storage.file_lock import acquire_lock

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
FLAGS = (
    *("HOROVOD_WITH_TENSORFLOW", "HOROVOD_WITHOUT_PYTORCH", "HOROVOD_WITHOUT_MXNET"),
    "HOROVOD_WITH_GLOO",
)
# Horovod's other variables, such as HOROVOD_RANK, are for running and change no wheel.
BUILD_VARIABLE = re.compile(
    "HOROVOD_(WITH|WITHOUT|GPU|NCCL|CUDA|ROCM|NVTX|BUILD|ALLOW_MIXED|SKIP|LOCAL)(_.*)?"
    "|HOROVOD_(CPU_OPERATIONS|DEBUG)|CXX|CXXFLAGS|LDFLAGS|CPLUS_INCLUDE_PATH"
)
# What Horovod 0.28.1 includes for XLA and TensorFlow 2.21 does not have there any more; what it
# takes from them stands under `#if HAVE_GPU`.
MOVED_HEADERS = (
    "client/xla_builder.h",
    "service/custom_call_target_registry.h",
    "service/hlo.pb.h",
    "shape.h",
    "xla_data.pb.h",
)
# Modules that Horovod's setup.py needs, and the packages that have them.
MODULES = {name: name for name in ("cloudpickle", "packaging", "psutil", "setuptools")}
MODULES["yaml"] = "pyyaml"
MOST_JOBS = 8  # As Horovod has it: compilers need memory as well as cores.
FAULT = re.compile(r"error: |CMake Error|Error: ")


@dataclass(frozen=True)
class Recipe:
    """All that decides what a wheel is like.

    Attributes:
        horovod: Version, of which there is one source distribution.
        tensorflow: Version.
        python: The interpreter's ABI and the machine, as in the names of compiled modules.
        libc: Its name and version.
        mpi: Path of the MPI compiler; empty without MPI.
        flags: The environment variables that the build heeds.
    """

    horovod: str
    tensorflow: str
    python: str
    libc: str
    mpi: str
    flags: Mapping[str, str]

    @property
    def key(self) -> str:
        """The name of the wheel's folder in a cache."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.horovod}-tensorflow-{self.tensorflow}-{self.python}-{digest[:12]}"

    @property
    def is_for_gpu(self) -> bool:
        """Whether Horovod shall work on GPU memory."""
        return any(name.startswith("HOROVOD_GPU") for name in self.flags)


def recipe(environment: Mapping[str, str]) -> Recipe:
    """Return what is to be built in this Python environment.

    Args:
        environment: Build flags in it are kept; others get their defaults. MPI is built in if it is
            there.

    Raises:
        ConfigurationError: If TensorFlow is not installed.
    """
    mpicxx = _mpi_compiler(environment)
    flags = {n: value for n, value in environment.items() if BUILD_VARIABLE.fullmatch(n)}
    for flag in (*FLAGS, "HOROVOD_WITH_MPI" if mpicxx else "HOROVOD_WITHOUT_MPI"):
        verb, _, part = flag.removeprefix("HOROVOD_").partition("_")
        if f"HOROVOD_{'WITHOUT' if verb == 'WITH' else 'WITH'}_{part}" not in flags:
            flags.setdefault(flag, "1")
    return Recipe(
        horovod=VERSION,
        tensorflow=_tensorflow().version,
        python=str(sysconfig.get_config_var("SOABI")),
        libc="-".join(platform.libc_ver()),
        mpi=mpicxx if "HOROVOD_WITH_MPI" in flags else "",
        flags=flags,
    )


def _mpi_compiler(environment: Mapping[str, str]) -> str:
    """Return the real path of one that finds its headers, which Debian packs separately."""
    path = shutil.which("mpicxx", path=environment.get("PATH"))
    if path is None:
        return ""
    command, program = [path, "-x", "c++", "-E", "-"], b"#include <mpi.h>\n"
    tried = subprocess.run(command, input=program, capture_output=True, env=environment)
    return os.path.realpath(path) if tried.returncode == 0 else ""


def _tensorflow() -> metadata.Distribution:
    """Return the installed distribution, which may be `tensorflow-cpu`, without importing it."""
    names = metadata.packages_distributions().get("tensorflow")
    if not names:
        raise ConfigurationError(
            f"{sys.prefix} has no TensorFlow to build Horovod for: pip install tensorflow"
        )
    return metadata.distribution(names[0])


def provide(wanted: Recipe, cache: Path, force: bool = False) -> Path:
    """Return the path of a sound wheel, which is built unless the cache has it.

    Args:
        wanted: What it shall be like.
        cache: Folder of all wheels; made if it is not there.
        force: Whether to build anew.

    Raises:
        ConfigurationError: If a tool is missing, the build fails, or the cache cannot be written.
    """
    folder = cache / wanted.key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--cache {cache}: {error}; give a folder of yours.") from error
    with _locked(folder / "lock"):
        for wheel in () if force else folder.glob("*.whl"):
            if _is_sound(wheel):
                print(f"reusing {wheel}", flush=True)
                return wheel
            print(f"{wheel} is damaged; building it again", flush=True)
        return _build(wanted, folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Have one builder at a time; the kernel frees the lock of one that is killed."""
    with path.open("w") as file:
        if not acquire_lock(file.fileno()):
            print("waiting for another build of the same wheel", flush=True)
            acquire_lock(file.fileno(), wait=True)
        yield


def _is_sound(wheel: Path) -> bool:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return False


def _build(wanted: Recipe, folder: Path) -> Path:
    tools = _tools(os.environ)
    for left in folder.glob("scratch-*"):  # By a build that was killed.
        shutil.rmtree(left)
    (folder / "recipe.json").write_text(json.dumps(asdict(wanted), indent=1))
    log = folder / "build.log"
    print(
        f"building Horovod {VERSION} for TensorFlow {wanted.tensorflow}, which takes minutes\n"
        f"  flags: {' '.join(f'{n}={value}' for n, value in sorted(wanted.flags.items()))}\n"
        f"  log:   {log}",
        flush=True,
    )
    with TemporaryDirectory(prefix="scratch-", dir=folder, ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        requirement = scratch / "requirement.txt"
        requirement.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n")
        # Neither a build environment of its own, where TensorFlow is not, nor pip's cache, which
        # knows nothing of flags.
        arguments = ["--no-build-isolation", "--no-deps", "--no-cache-dir", "--verbose"]
        arguments += ["--wheel-dir", name, "--requirement", str(requirement)]
        with log.open("w") as output:
            code = subprocess.run(
                pip("wheel", *arguments),
                cwd=scratch,
                env={**os.environ, **tools, **_environment(wanted, scratch)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
        made = list(scratch.glob("*.whl"))
        if code != 0 or not made:
            raise ConfigurationError(
                f"building Horovod {VERSION} failed (exit code {code}). The end of {log}:\n"
                + telling_lines(log.read_text(errors="replace"))
            )
        wheel = made[0].replace(folder / made[0].name)
    print(f"built {wheel}", flush=True)
    return wheel


def _tools(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that name the build tools, once all are known to be there."""
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


def _environment(wanted: Recipe, scratch: Path) -> dict[str, str]:
    """Return what the build needs to find, apart from its tools."""
    include = Path(str(_tensorflow().locate_file("tensorflow/include")))
    external = include / "external"
    headers = [external / "highwayhash", external / "farmhash_archive" / "src"]
    if not wanted.is_for_gpu:
        headers.append(scratch / "moved")
        for name in MOVED_HEADERS:
            header = scratch / "moved" / "tensorflow" / "compiler" / "xla" / name
            header.parent.mkdir(parents=True, exist_ok=True)
            header.touch()
    given = wanted.flags.get("CPLUS_INCLUDE_PATH")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(min(MOST_JOBS, _cores()))
    return {
        **wanted.flags,
        "CPLUS_INCLUDE_PATH": ":".join([*([given] if given else []), *map(str, headers)]),
        # Gloo asks for CMake 2.8, which CMake 4 refuses unless told that 3.5 will do.
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        "MAKEFLAGS": f"-j{jobs}",  # Not those of a `make` that this command may be called by.
        "TMPDIR": str(scratch),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def telling_lines(text: str) -> str:
    """Return a log's first faults, which what comes after them may have buried, and its end."""
    lines = [line[:300] for line in text.splitlines()]
    before, last = lines[:-12], lines[-12:]
    faults = [line for line in before if FAULT.search(line)][:8]
    return "\n".join([*faults, *(["..."] if before else []), *last])


def pip(*arguments: str) -> list[str]:
    """Return the command that runs this Python's pip."""
    return [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", *arguments]
