"""`distrib horovod build --gpu` for real, in an environment with TensorFlow's libraries of CUDA.

It needs the package index, half a gigabyte of packages and minutes, and no GPU: what it builds is
looked at, and tried on CPUs. With a GPU, the command tries it there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.exhaustive

CACHE = Path(__file__).parents[2] / ".cache" / "horovod"
PACKAGES = Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
# Of what `tensorflow[and-cuda]` brings, what Horovod needs: the rest is large.
LIBRARIES = ("nvidia-cuda-runtime-cu12>=12.5.82,<13.0", "nvidia-nccl-cu12>=2.27.7,<3.0")
LOADED = """
import horovod.tensorflow as hvd
print("nccl", hvd.nccl_built())
for line in open("/proc/self/maps"):
    if "libnccl" in line:
        print(line.split()[-1])
"""


def run(*command: str | Path) -> str:
    environment = {name: v for name, v in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another file system.
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a copy of this environment with libraries of CUDA."""
    folder = tmp_path_factory.mktemp("gpu")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    shutil.copytree(
        PACKAGES,
        folder / PACKAGES.relative_to(sys.prefix),
        copy_function=link_or_copy,
        dirs_exist_ok=True,
    )
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--no-deps", *LIBRARIES]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"pip cannot install {LIBRARIES}: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="module")
def output(python: Path) -> str:
    """What the command says."""
    command = ["-P", "-m", "distrib.launch.cli", "horovod", "build", "--gpu", f"--cache={CACHE}"]
    return run(python, *command)


@pytest.fixture(scope="module")
def library(python: Path, output: str) -> Path:
    (library,) = (python.parents[1] / "lib").glob("*/site-packages/horovod/tensorflow/mpi_lib*.so")
    return library


def test_the_command_tries_what_it_can(output: str) -> None:
    assert "checked: two ranks got the right sum" in output
    assert re.search(r"checked: the sum of \d GPU|not checked: this machine has no GPU", output)


def test_the_library_finds_nccl_in_its_environment(python: Path, library: Path) -> None:
    dynamic = run("readelf", "-d", library)
    assert "[libnccl.so.2]" in dynamic
    (run_path,) = re.findall(r"\(RUNPATH\).*\[(.*)\]", dynamic)
    assert run_path.startswith("$ORIGIN/../../nvidia/nccl/lib")
    assert "scratch-" not in run_path, "it names a folder of the build"
    loaded = run(python, "-P", "-c", LOADED)
    assert int(re.findall(r"^nccl (\d+)$", loaded, re.MULTILINE)[0]) >= 22707
    nccl = library.parents[2] / "nvidia" / "nccl" / "lib" / "libnccl.so.2"
    paths = re.findall(r"^/.*libnccl.*$", loaded, re.MULTILINE)
    assert {Path(path).resolve() for path in paths} == {nccl.resolve()}


def test_the_library_holds_the_runtime_that_tensorflow_uses(library: Path) -> None:
    undefined = run("nm", "-D", "--undefined-only", library)
    assert not re.findall(r"\b(?:__)?cuda[A-Z]\w*", undefined)
    # Each version of the runtime has internal names that others have not.
    internal = re.compile(r"libcudart_static_[0-9a-f]{40}")
    runtime = library.parents[2] / "nvidia" / "cuda_runtime" / "lib" / "libcudart_static.a"
    linked = set(internal.findall(run("nm", library)))
    assert len(linked) > 1000
    assert linked <= set(internal.findall(run("nm", runtime)))


def test_nccl_has_every_function_that_the_library_calls(library: Path) -> None:
    called = re.findall(r" U (nccl\w+)", run("nm", "-D", "--undefined-only", library))
    nccl = library.parents[2] / "nvidia" / "nccl" / "lib" / "libnccl.so.2"
    assert "ncclAllReduce" in called
    assert set(called) <= set(re.findall(r" W (nccl\w+)", run("nm", "-D", "--defined-only", nccl)))
