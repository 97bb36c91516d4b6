"""The cache and the build's environment, with a fake pip: the real build, which `make setup` runs,
takes minutes and the network.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_parts
import pytest

# Records its environment, runs the test's own code, and writes a wheel.
PIP = """
import json, os, signal, sys, time, zipfile
from pathlib import Path

if "--target" in sys.argv:
    target = Path(sys.argv[sys.argv.index("--target") + 1])
    for name in {installed!r}:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).touch()
    sys.exit({installs})
folder = Path(sys.argv[sys.argv.index("--wheel-dir") + 1])
moved = folder / "moved/tensorflow/compiler/xla"
headers = {{str(path.relative_to(moved)): path.read_text() for path in moved.rglob("*.h")}}
home = Path(os.environ.get("HOROVOD_CUDA_HOME", "/none"))
toolkit = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
nccl = Path(os.environ.get("HOROVOD_NCCL_LIB", "/none"), "libnccl.so").is_file()
with open({record!r}, "a") as record:
    seen = {{"environment": dict(os.environ), "headers": headers, "toolkit": toolkit}}
    json.dump({{**seen, "nccl": nccl}}, record)
    record.write("\\n")
{middle}
with zipfile.ZipFile(folder / "horovod-0.28.1-none.whl", "w") as archive:
    archive.writestr("horovod/built.py", f"PID = {{os.getpid()}}\\n" * 1000)
"""


@dataclass
class Builder:
    """The command, with a fake pip."""

    folder: Path
    installs: int = 0  # The exit code of `pip install`.
    installed: tuple[str, ...] = ("nvidia/cu13/bin/nvcc",)  # What it leaves in its target.

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def builds(self) -> list[dict[str, Any]]:
        record = self.folder / "record"
        return [json.loads(line) for line in record.read_text().splitlines()]

    def start(
        self, *options: str, middle: str = "", environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        package = self.folder / "path" / "pip"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()  # Without it, the real one would be found.
        program = PIP.format(
            record=str(self.folder / "record"),
            middle=middle,
            installs=self.installs,
            installed=self.installed,
        )
        (package / "__main__.py").write_text(program)
        # If Python finds the real pip all the same, that finds nothing to build.
        path = {"PYTHONPATH": f"{package.parent}:{self.folder}/site", "PIP_NO_INDEX": "1"}
        command = [sys.executable, "-P", "-m", "distrib.launch.cli", "horovod", "build"]
        return subprocess.Popen(
            [*command, "--no-install", f"--cache={self.cache}", *options],
            env={**os.environ, **path, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, *options: str, middle: str = "", environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        process = self.start(*options, middle=middle, environment=environment)
        output, _ = process.communicate()
        return process.returncode, output

    def wheel(self) -> Path:
        (wheel,) = self.cache.glob("*/*.whl")
        return wheel


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_the_build_sees_the_flags_and_the_moved_headers(builder: Builder) -> None:
    given = {"HOROVOD_WITHOUT_MPI": "1", "HOROVOD_NCCL_HOME": "/x", "MAKEFLAGS": "s -- A=b"}
    code, output = builder.run(environment={**given, "CMAKE_BUILD_PARALLEL_LEVEL": "3"})
    assert code == 0, output
    (build,) = builder.builds
    environment = build["environment"]
    assert environment["HOROVOD_WITHOUT_MPI"] == environment["HOROVOD_WITH_GLOO"] == "1"
    assert "HOROVOD_WITH_MPI" not in environment
    assert environment["HOROVOD_NCCL_HOME"] == "/x"
    assert environment["MAKEFLAGS"] == "-j3"
    assert Path(environment["HOROVOD_CMAKE"]).is_file()
    paths = environment["CPLUS_INCLUDE_PATH"].split(":")
    assert paths[-1].endswith("moved")
    assert all(Path(path).is_dir() for path in paths[:-1])
    assert build["headers"]["shape.h"] == build["headers"]["client/xla_builder.h"] == ""
    assert f"built {builder.wheel()}" in output


def test_a_build_for_gpus_sees_the_toolkit_and_nccl(builder: Builder, tmp_path: Path) -> None:
    gpu_parts.packages(gpu_parts.tensorflow(tmp_path / "site"))
    toolkit = gpu_parts.toolkit(tmp_path / "cuda", "12.6.85")
    given = {"HOROVOD_CUDA_HOME": str(toolkit), "LDFLAGS": "-Wl,--mine"}
    given["LIBRARY_PATH"] = "/lib/mine"
    code, output = builder.run("--gpu", environment=given)
    assert code == 0, output
    (build,) = builder.builds
    environment = build["environment"]
    assert environment["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert environment["CUDACXX"] == f"{toolkit}/bin/nvcc"
    assert environment["PATH"].startswith(f"{toolkit}/bin:")
    assert build["nccl"]
    assert environment["LIBRARY_PATH"] == f"{environment['HOROVOD_NCCL_LIB']}:/lib/mine"
    runtime = f"-Wl,--whole-archive {toolkit}/lib64/libcudart_static.a -Wl,--no-whole-archive"
    assert environment["LDFLAGS"].startswith(runtime)
    assert "-Wl,-rpath,$ORIGIN/../../nvidia/nccl/lib" in environment["LDFLAGS"]
    assert environment["LDFLAGS"].endswith(" -Wl,--mine")
    assert "AsGpuStreamValue" in build["headers"]["client/xla_builder.h"]
    assert build["headers"]["shape.h"] == ""
    assert builder.run("--gpu", environment=given) == (0, f"reusing {builder.wheel()}\n")


def test_a_toolkit_is_put_together_of_the_package_index(builder: Builder, tmp_path: Path) -> None:
    gpu_parts.packages(gpu_parts.tensorflow(tmp_path / "site"))
    code, output = builder.run("--gpu")
    assert code == 0, output
    assert "installing nvcc 13." in output
    (build,) = builder.builds
    parts = [
        "bin/nvcc",
        "include/cuda_runtime_api.h",
        "lib64/libcudart.so",
        "lib64/libcudart.so.12",
    ]
    assert {*parts, "lib64/libcudart.so.12", "lib64/libcudart_static.a"} == set(build["toolkit"])
    assert build["environment"]["HOROVOD_BUILD_CUDA_CC_LIST"].startswith("75,80,")


def test_a_compiler_that_cannot_be_installed_is_an_error(builder: Builder, tmp_path: Path) -> None:
    gpu_parts.packages(gpu_parts.tensorflow(tmp_path / "site"))
    builder.installs = 1
    code, output = builder.run("--gpu")
    assert code == 78
    assert "cannot put a CUDA compiler together (nvidia-cuda-nvcc==13." in output
    assert "pip cannot install it" in output
    assert "HOROVOD_CUDA_HOME" in output


@pytest.mark.parametrize(
    ("installed", "reason"),
    [
        (("nvidia/cu13/nvcc",), "the packages have no nvidia/*/bin/nvcc"),
        (
            ("nvidia/cu13/bin/nvcc", "nvidia/cu13/include/cuda_runtime_api.h"),
            "cuda_runtime cannot be linked beside it",
        ),
    ],
    ids=["no compiler", "a header twice"],
)
def test_packages_of_another_layout_are_an_error(
    builder: Builder, tmp_path: Path, installed: tuple[str, ...], reason: str
) -> None:
    gpu_parts.packages(gpu_parts.tensorflow(tmp_path / "site"))
    builder.installed = installed
    code, output = builder.run("--gpu")
    assert code == 78, output
    assert reason in output
    assert "HOROVOD_CUDA_HOME" in output


def test_a_runtime_without_its_library_is_an_error(builder: Builder, tmp_path: Path) -> None:
    site = gpu_parts.packages(gpu_parts.tensorflow(tmp_path / "site"))
    (site / "nvidia/cuda_runtime/lib/libcudart.so.12").unlink()
    code, output = builder.run("--gpu")
    assert code == 78, output
    assert "cuda_runtime/lib has no libcudart.so for it" in output


def test_a_wheel_is_built_once_and_reused_without_a_compiler(
    builder: Builder, tmp_path: Path
) -> None:
    assert builder.run(environment={"HOROVOD_WITHOUT_MPI": "1"})[0] == 0
    wheel = builder.wheel()
    bare = {"HOROVOD_WITHOUT_MPI": "1", "PATH": str(tmp_path)}
    assert builder.run(environment=bare) == (0, f"reusing {wheel}\n")
    before = wheel.read_bytes()
    assert builder.run("--force", environment={"HOROVOD_WITHOUT_MPI": "1"})[0] == 0
    assert len(builder.builds) == 2
    assert builder.wheel() == wheel
    assert wheel.read_bytes() != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
    ],
    ids=["empty", "cut off", "one bit"],
)
def test_a_damaged_wheel_is_built_again(builder: Builder, damage: Callable[[bytes], bytes]) -> None:
    assert builder.run()[0] == 0
    wheel = builder.wheel()
    wheel.write_bytes(damage(wheel.read_bytes()))
    code, output = builder.run()
    assert code == 0
    assert f"{wheel} is damaged" in output
    assert len(builder.builds) == 2
    assert builder.run() == (0, f"reusing {wheel}\n")


def test_a_cache_that_cannot_be_written(builder: Builder) -> None:
    """Its wheel can be used all the same; root may write anywhere but where a folder is."""
    assert builder.run()[0] == 0
    wheel = builder.wheel()
    lock = wheel.with_name("lock")
    lock.unlink()
    lock.mkdir()
    assert builder.run() == (0, f"reusing {wheel}\n")
    code, output = builder.run("--force")
    assert code == 78
    assert f"--cache {builder.cache}: " in output
    assert "Traceback" not in output


def test_a_disk_that_the_build_fills(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip has left of its last words says nothing."""
    usage = "import shutil; shutil.disk_usage = lambda folder: shutil._ntuple_diskusage(9, 9, 0)"
    site = builder.folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(usage)
    code, output = builder.run(middle="sys.exit(2)")
    assert code == 78
    assert "No space left on device" in output


def test_a_killed_build_leaves_no_wheel(builder: Builder) -> None:
    half = "(folder / 'horovod-0.28.1-none.whl').write_bytes(b'PK')\n"
    code, _ = builder.run(middle=half + "os.kill(os.getppid(), signal.SIGKILL); os._exit(1)")
    assert code == -9
    assert list(builder.cache.glob("*/*.whl")) == []
    assert len(list(builder.cache.glob("*/scratch-*"))) == 1
    code, output = builder.run()
    assert code == 0, output
    assert "damaged" not in output
    assert builder.wheel().is_file()
    assert list(builder.cache.glob("*/scratch-*")) == []


def test_concurrent_builds_build_one_wheel(builder: Builder) -> None:
    go = builder.folder / "go"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    first = builder.start(middle=wait)
    try:
        assert first.stdout
        assert first.stdout.readline().startswith("building Horovod")
        second = builder.start(middle=wait)
        assert second.stdout
        assert second.stdout.readline() == "waiting for another build of the same wheel\n"
    finally:
        go.touch()
    assert f"built {builder.cache}" in first.communicate()[0]
    assert second.communicate()[0] == f"reusing {builder.wheel()}\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(builder.builds) == 1


def test_a_failed_build_shows_its_errors(builder: Builder) -> None:
    half = "(folder / 'horovod-0.28.1-none.whl').write_bytes(b'PK')\n"
    fail = "print('a.cc:1: fatal error: b.h: No such file')\nprint('more\\n' * 99)\nsys.exit('end')"
    code, output = builder.run(middle=half + fail)
    assert code == 78
    (log,) = builder.cache.glob("*/build.log")
    assert f"failed (exit code 1). The end of {log}:" in output
    assert "a.cc:1: fatal error: b.h" in output
    assert output.endswith("more\n\nend\n")
    assert list(builder.cache.glob("*/*.whl")) == []
    assert list(builder.cache.glob("*/scratch-*")) == []


def test_an_unusable_cache_is_refused(builder: Builder) -> None:
    builder.cache.touch()
    code, output = builder.run()
    assert code == 78
    assert f"--cache {builder.cache}: " in output


def test_missing_tools_are_named_with_their_packages(builder: Builder, tmp_path: Path) -> None:
    code, output = builder.run(environment={"PATH": str(tmp_path)})
    assert code == 78
    assert "building Horovod needs g++, make" in output
    assert "  apt-get install g++ make\n" in output
    assert not (tmp_path / "record").exists()
