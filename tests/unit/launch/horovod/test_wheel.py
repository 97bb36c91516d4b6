"""The cache and the build's environment, with a stand-in for pip: the real build takes minutes and
the network, and is what `make setup` does.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from distrib.errors import ConfigurationError
from distrib.launch.horovod.wheel import MODULES, provide, recipe

# Notes what it was called with, does what a test wants in between, and leaves a wheel.
PIP = """
import json, os, signal, sys, time, zipfile
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--wheel-dir") + 1])
headers = [str(path.relative_to(folder)) for path in folder.rglob("*.h")]
with open({record!r}, "a") as record:
    json.dump({{"environment": dict(os.environ), "headers": sorted(headers)}}, record)
    record.write("\\n")
{middle}
with zipfile.ZipFile(folder / "horovod-0.28.1-none.whl", "w") as archive:
    archive.writestr("horovod/built.py", f"PID = {{os.getpid()}}\\n" * 1000)
"""


@dataclass
class Builder:
    """The command, with another pip."""

    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def builds(self) -> list[dict[str, dict[str, str]]]:
        record = self.folder / "record"
        return [json.loads(line) for line in record.read_text().splitlines()]

    def start(
        self, *options: str, middle: str = "", environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        package = self.folder / "path" / "pip"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()  # Without it, the real one would be found.
        program = PIP.format(record=str(self.folder / "record"), middle=middle)
        (package / "__main__.py").write_text(program)
        # Should the real one be found all the same, it finds nothing to build.
        path = {"PYTHONPATH": str(package.parent), "PIP_NO_INDEX": "1"}
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


@pytest.mark.parametrize(
    "change",
    [
        {"horovod": "0.29.0"},
        {"tensorflow": "2.99.0"},
        {"python": "cpython-399-x86_64-linux-gnu"},
        {"libc": "glibc-9.99"},
        {"mpi": "/opt/mpi/bin/mpicxx"},
        {"flags": {"HOROVOD_WITH_GLOO": "1"}},
    ],
)
def test_whatever_decides_about_a_wheel_decides_about_its_place(change: dict[str, object]) -> None:
    wanted = recipe({})
    assert replace(wanted, **change).key != wanted.key
    assert replace(wanted).key == wanted.key


def test_variables_for_running_do_not_decide_about_a_wheel() -> None:
    running = ("RANK", "LOG_LEVEL", "GLOO_TIMEOUT_SECONDS", "NUM_NCCL_STREAMS", "CONTROLLER")
    assert recipe({f"HOROVOD_{name}": "1" for name in running}) == recipe({})


def test_flags_that_are_given_are_kept() -> None:
    given = {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_HOME": "/opt/nccl", "CXX": "g++-13"}
    wanted = recipe(given)
    assert given.items() <= wanted.flags.items()
    assert wanted.flags["HOROVOD_WITH_GLOO"] == "1"
    assert wanted.is_for_gpu
    assert not recipe({}).is_for_gpu


def test_a_flag_replaces_the_default_that_contradicts_it() -> None:
    flags = recipe({"HOROVOD_WITH_PYTORCH": "1", "HOROVOD_WITH_MPI": "1"}).flags
    assert not {"HOROVOD_WITHOUT_PYTORCH", "HOROVOD_WITHOUT_MPI"} & set(flags)
    assert "HOROVOD_WITHOUT_MXNET" in flags


@pytest.mark.parametrize(("finds_headers", "flag"), [(True, "WITH_MPI"), (False, "WITHOUT_MPI")])
def test_mpi_is_built_in_if_its_compiler_finds_its_headers(
    tmp_path: Path, finds_headers: bool, flag: str
) -> None:
    compiler = tmp_path / "mpicxx"
    compiler.write_text(f"#!/bin/sh\ncat > {tmp_path}/program\nexit {0 if finds_headers else 1}\n")
    compiler.chmod(0o755)
    wanted = recipe({"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert wanted.flags[f"HOROVOD_{flag}"] == "1"
    assert wanted.mpi == (str(compiler.resolve()) if finds_headers else "")
    assert "mpi.h" in (tmp_path / "program").read_text()


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
    assert "moved/tensorflow/compiler/xla/shape.h" in build["headers"]
    assert f"built {builder.wheel()}" in output


def test_a_build_for_gpus_has_no_empty_headers_but_those_that_are_given(builder: Builder) -> None:
    given = {"HOROVOD_GPU_OPERATIONS": "NCCL", "CPLUS_INCLUDE_PATH": "/real"}
    code, output = builder.run(environment=given)
    assert code == 0, output
    (build,) = builder.builds
    assert build["headers"] == []
    assert build["environment"]["CPLUS_INCLUDE_PATH"].startswith("/real:")


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


def test_a_build_that_was_killed_leaves_no_wheel(builder: Builder) -> None:
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


def test_two_builders_build_one_wheel(builder: Builder) -> None:
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


def test_a_build_that_fails_says_where_and_why(builder: Builder) -> None:
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


def test_a_cache_that_cannot_be_is_refused(builder: Builder) -> None:
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


def test_missing_modules_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigurationError, match=r"python\S* -m pip install pyyaml"):
        provide(recipe({}), tmp_path)


def test_the_extra_has_what_the_build_needs() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    extra = {line.partition(">")[0] for line in project["optional-dependencies"]["horovod"]}
    assert {*MODULES.values(), "cmake"} <= extra
