import subprocess
import zipfile
from pathlib import Path

import pytest

from distrib.errors import ConfigurationError
from distrib.launch.horovod.linkage import check_linkage

CALLS = "int cudaMalloc(void); int cuInit(void); int f(void) { return cudaMalloc() + cuInit(); }"
DEFINES = '__attribute__((visibility("hidden"))) int cudaMalloc(void) { return 0; }'


@pytest.fixture
def wheel(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    library = tmp_path / "mpi_lib.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=request.param.encode(), check=True)
    wheel = tmp_path / "horovod.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(library, "horovod/tensorflow/mpi_lib.so")
    return wheel


@pytest.mark.parametrize("wheel", [CALLS], indirect=True)
def test_a_wheel_without_the_runtime_is_refused(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="would take cudaMalloc from TensorFlow's"):
        check_linkage(wheel, tmp_path)


@pytest.mark.parametrize("wheel", [CALLS + DEFINES], indirect=True)
def test_a_wheel_with_the_runtime_passes(wheel: Path, tmp_path: Path) -> None:
    check_linkage(wheel, tmp_path)


def test_a_library_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    wheel = tmp_path / "horovod.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("horovod/tensorflow/mpi_lib.so", "no library")
    with pytest.raises(ConfigurationError, match=r"nm cannot read mpi_lib.so.*binutils"):
        check_linkage(wheel, tmp_path)
