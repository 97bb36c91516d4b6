from dataclasses import replace
from pathlib import Path

import pytest

from distrib.launch.horovod.recipe import Recipe, recipe_for

CUDA = {
    **{"nvcc": "12.6.85", "runtime": "12.6", "nccl": "2.32.3", "run_path": "/usr/lib"},
    "adapter": "0123456789ab",
}


@pytest.mark.parametrize(
    "change",
    [
        {"horovod": "0.29.0"},
        {"tensorflow": "2.99.0"},
        {"python": "cpython-399-x86_64-linux-gnu"},
        {"libc": "glibc-9.99"},
        {"mpi": "/opt/mpi/bin/mpicxx"},
        {"flags": {"HOROVOD_WITH_GLOO": "1"}},
        {"cuda": CUDA},
    ],
)
def test_each_input_of_a_wheel_changes_its_key(change: dict[str, object]) -> None:
    wanted = recipe_for({})
    assert replace(wanted, **change).key != wanted.key
    assert replace(wanted).key == wanted.key


def test_runtime_variables_do_not_change_the_recipe() -> None:
    runtime = ("RANK", "LOG_LEVEL", "GLOO_TIMEOUT_SECONDS", "NUM_NCCL_STREAMS", "CONTROLLER")
    assert recipe_for({f"HOROVOD_{name}": "1" for name in runtime}) == recipe_for({})


def test_flags_in_the_environment_are_kept() -> None:
    given = {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_HOME": "/opt/nccl", "CXX": "g++-13"}
    wanted = recipe_for(given)
    assert given.items() <= wanted.flags.items()
    assert wanted.flags["HOROVOD_WITH_GLOO"] == "1"


def test_cached_wheels_for_cpus_keep_their_names() -> None:
    old = Recipe("0.28.1", "2.21.0", "cpython-311-x86_64-linux-gnu", "glibc-2.36", "", {"A": "1"})
    assert old.key == "0.28.1-tensorflow-2.21.0-cpython-311-x86_64-linux-gnu-89055f6c4664"


@pytest.mark.parametrize("name", sorted(CUDA))
def test_each_part_of_a_build_for_gpus_changes_its_key(name: str) -> None:
    assert recipe_for({}, CUDA).key != recipe_for({}, {**CUDA, name: "other"}).key


def test_gpus_reduce_by_nccl_unless_flags_say_otherwise() -> None:
    assert recipe_for({}, CUDA).flags["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    given = {"HOROVOD_GPU_ALLREDUCE": "NCCL"}
    assert "HOROVOD_GPU_OPERATIONS" not in recipe_for(given, CUDA).flags
    assert "HOROVOD_GPU_OPERATIONS" not in recipe_for({}).flags


def test_a_flag_replaces_the_contrary_default() -> None:
    flags = recipe_for({"HOROVOD_WITH_PYTORCH": "1", "HOROVOD_WITH_MPI": "1"}).flags
    assert not {"HOROVOD_WITHOUT_PYTORCH", "HOROVOD_WITHOUT_MPI"} & set(flags)
    assert "HOROVOD_WITHOUT_MXNET" in flags


@pytest.mark.parametrize(("finds_headers", "flag"), [(True, "WITH_MPI"), (False, "WITHOUT_MPI")])
def test_mpi_is_built_in_if_its_compiler_finds_its_headers(
    tmp_path: Path, finds_headers: bool, flag: str
) -> None:
    compiler = tmp_path / "mpicxx"
    compiler.write_text(f"#!/bin/sh\ncat > {tmp_path}/program\nexit {0 if finds_headers else 1}\n")
    compiler.chmod(0o755)
    wanted = recipe_for({"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert wanted.flags[f"HOROVOD_{flag}"] == "1"
    assert wanted.mpi == (str(compiler.resolve()) if finds_headers else "")
    assert "mpi.h" in (tmp_path / "program").read_text()
