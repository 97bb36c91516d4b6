"""What needs NVIDIA GPUs: `make gpu` runs it, on one machine with one or more of them.

`DISTRIB_TEST_DEVICES=cpu make gpu` tries the same tests on the CPU, two devices of which stand in
for two GPUs. The end of the output says what was skipped, and why.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
from harness import DEVICES, environment

COUNT = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"


@functools.cache
def number_of_gpus() -> int:
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    except FileNotFoundError:
        return 0
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0


@functools.cache
def number_that_tensorflow_sees() -> int:
    command = [sys.executable, "-P", "-c", COUNT]
    return int(subprocess.check_output(command, env=environment(), text=True))


@pytest.fixture(autouse=True)
def devices(request: pytest.FixtureRequest) -> str:
    """Kind of the devices that the tests use, of which `@pytest.mark.gpu(n)` needs n."""
    chosen = os.environ.get(DEVICES)
    if chosen is None:
        pytest.skip("`make gpu` runs it")
    marker = request.node.get_closest_marker("gpu")
    needed = marker.args[0] if marker.args else 1
    if chosen == "gpu" and number_of_gpus() < needed:
        pytest.skip(f"needs {needed} GPUs; this machine has {number_of_gpus()}")
    if chosen == "cpu" and marker.kwargs.get("only"):
        pytest.skip("there is nothing like it on the CPU")
    if chosen == "gpu":  # Without its libraries of CUDA, TensorFlow would use the CPU.
        seen = number_that_tensorflow_sees()
        assert seen >= needed, (
            f"TensorFlow sees {seen} of {number_of_gpus()} GPUs: rm .venv/horovod*"
        )
    return chosen
