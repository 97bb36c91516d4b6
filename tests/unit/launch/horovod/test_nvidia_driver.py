"""With a driver of the test's own, because tests run without NVIDIA's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
int cuDriverGetVersion(int *version) { *version = 12080; return FAILS; }
int cuInit(unsigned flags) { return FAILS; }
int cuDeviceGetCount(int *count) { *count = 3; return 0; }
"""
ASK = """
from distrib.launch.horovod.nvidia_driver import driver_version, gpu_count
print(driver_version(), gpu_count())
"""


@pytest.mark.parametrize(("fails", "answer"), [(0, "12.8 3"), (100, "None 0")])
def test_a_driver_is_asked(tmp_path: Path, fails: int, answer: str) -> None:
    source = tmp_path / "driver.c"
    source.write_text(DRIVER)
    command = ["cc", "-shared", "-fPIC", f"-DFAILS={fails}", "-o", tmp_path / "libcuda.so.1"]
    subprocess.run([*command, source], check=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == answer
