"""TensorFlow's messages at its start that say nothing about the job.

TensorFlow 2.21 writes most of them before it reads TF_CPP_MIN_LOG_LEVEL, so no setting drops them.
Those about missing GPUs are noise only where there is none: elsewhere they report a fault.

`distrib run` removes them from what its ranks write. A process by itself can pass its standard
error through this file (`distrib/quiet.py`), which it runs as a program of its own: if the process
crashes, what it wrote before is not lost.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_PREFIX = rb"[IE]\d{4} \d\d:\d\d:[\d.]+ +\d+ "
_ALWAYS = (
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called .*\n|"
    + _PREFIX
    + rb"port\.cc:\d+\] oneDNN custom operations are on.*\n|"
    + _PREFIX
    + rb"cpu_feature_guard\.cc:\d+\] .*\n|"
    rb"To enable the following instructions: .*\n"  # The line after that, which may come alone.
)
_WITHOUT_GPU = (
    _PREFIX
    + rb"cudart_stub\.cc:\d+\] Could not find cuda drivers.*\n|"
    + _PREFIX
    + rb"cuda_(?:platform|executor|diagnostics)\.cc:\d+\] .*cuInit.*\n"
)
_INFO = rb"I\d{4} \d\d:\d\d:[\d.]+ +\d+ \S+:\d+\] .*\n"
# Device nodes of NVIDIA's driver, natively and in Windows's subsystem for Linux.
_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))
# Set by who expects a GPU, such as the images with CUDA.
_EXPECTATIONS = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_VERSION")


def may_have_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this machine has a GPU of NVIDIA, or is expected to have one."""
    return any(path.exists() for path in _DEVICES) or any(
        name in environment for name in _EXPECTATIONS
    )


class StartupNoise:
    """Removes the messages from what one rank writes to standard error.

    Args:
        may_have_gpu: Whether a host of the job may have a GPU.
        is_chief: Whether it is rank 0. Of others, which repeat it, no message of level INFO is
            shown.
    """

    def __init__(self, may_have_gpu: bool, is_chief: bool) -> None:
        messages = _ALWAYS if may_have_gpu else _ALWAYS + rb"|" + _WITHOUT_GPU
        messages = messages if is_chief else messages + rb"|" + _INFO
        self._messages = re.compile(rb"^(?:" + messages + rb")", re.MULTILINE)
        self._in_line = False

    def remove(self, data: bytes) -> bytes:
        """Return the bytes without the messages. TensorFlow writes each of them at once."""
        head, end, lines = data.partition(b"\n") if self._in_line else (b"", b"", data)
        self._in_line = not data.endswith(b"\n")
        return head + end + self._messages.sub(b"", lines)


def of_ranks(
    are_local: Sequence[bool], environment: Mapping[str, str] = os.environ
) -> list[StartupNoise]:
    """Return what removes the messages of each rank; nothing if the user wants to see all of them.

    Args:
        are_local: Whether each rank runs on this machine.
        environment: Variables of the process.
    """
    if environment.get(LOG_LEVEL) == "0":
        return []
    gpu = not all(are_local) or may_have_gpu(environment)
    return [StartupNoise(gpu, is_chief=rank == 0) for rank in range(len(are_local))]


def main() -> None:
    """Copy standard input to standard output without the messages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # It ends with the process that writes.
    noise = StartupNoise(may_have_gpu(), is_chief=True)
    while data := os.read(0, 1 << 16):
        shown = noise.remove(data)
        while shown:
            shown = shown[os.write(1, shown) :]


if __name__ == "__main__":
    main()
