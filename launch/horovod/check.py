"""Tries an installed Horovod with ranks on this machine.

A wheel that compiles proves little: Horovod was never tested with this TensorFlow. So two ranks
sum their tensors, on CPUs and, if it was built for GPUs, on GPUs where there are any.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from distrib.backends.host_name import check_host_name
from distrib.environment import GLOO_TIMEOUT_VARIABLE
from distrib.errors import ConfigurationError

from .log_excerpt import relevant_log_lines
from .nvidia_driver import gpu_count

CHECK_SECONDS = 300.0
# The script of the ranks: the operation that distrib uses, as distrib calls it.
RANK_SCRIPT = """
import sys
import horovod.tensorflow as hvd
import tensorflow as tf

size, device, for_gpu = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
hvd.init()
if device == "GPU":
    gpu = tf.config.list_physical_devices("GPU")[hvd.local_rank()]
    tf.config.set_visible_devices(gpu, "GPU")
    tf.config.experimental.set_memory_growth(gpu, True)
reduce = tf.function(lambda tensors: hvd.grouped_allreduce(tensors, op=hvd.Sum))
with tf.device(device):
    sums = reduce([tf.range(3.0) + hvd.rank(), tf.ones([2])])
found = [value.numpy().tolist() for value in sums]
first = size * (size - 1) / 2
if hvd.size() != size or found != [[first, first + size, first + 2 * size], [size] * 2]:
    raise SystemExit(f"rank {hvd.rank()} of {hvd.size()}: the sum over {size} ranks is {found}")
if not all(tf.DeviceSpec.from_string(value.device).device_type == device for value in sums):
    raise SystemExit(f"rank {hvd.rank()}: the sum is on {sums[0].device} instead of a {device}")
if for_gpu and not hvd.nccl_built():
    raise SystemExit("the installed Horovod is built without NCCL")
"""


def check(for_gpu: bool = False, seconds: float = CHECK_SECONDS) -> None:
    """Start ranks on this host with `distrib run`, which sum their tensors.

    Args:
        for_gpu: Whether Horovod is built for GPUs. Two ranks, or one on a machine with one GPU,
            then use NCCL as well. Defaults to `False`.
        seconds: Timeout in seconds. Defaults to `CHECK_SECONDS`.

    Raises:
        ConfigurationError: If the ranks fail, get another sum, or exceed the timeout.
    """
    check_host_name()
    # Two ranks cannot share one GPU.
    _start_ranks(2, "CPU", for_gpu, {"CUDA_VISIBLE_DEVICES": "-1"}, seconds)
    print("checked: two ranks got the right sum", flush=True)
    gpus = gpu_count() if for_gpu else 0
    if gpus:
        ranks = min(2, gpus)
        _start_ranks(ranks, "GPU", for_gpu, {}, seconds)
        print(f"checked: the sum of {ranks} GPU(s) by NCCL is right", flush=True)
    elif for_gpu:
        print("not checked: this machine has no GPU to try NCCL on", flush=True)


def _start_ranks(
    ranks: int, device: str, for_gpu: bool, variables: Mapping[str, str], seconds: float
) -> None:
    launcher = [sys.executable, "-P", "-m", "distrib.launch.cli", "run", "-np", str(ranks)]
    # A wheel that crashes its ranks does so again.
    options = ["--attempts", "0", "--no-spares"]
    arguments = [str(ranks), device, str(for_gpu)]
    common = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        GLOO_TIMEOUT_VARIABLE: "120",  # Importing TensorFlow is slow on a busy machine.
    }
    try:
        done = subprocess.run(
            [*launcher, *options, sys.executable, "-P", "-c", RANK_SCRIPT, *arguments],
            env={**os.environ, **common, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        failure, output = f"did not end within {seconds:.0f} s", error.output or b""
    else:
        if done.returncode == 0:
            return
        failure, output = f"failed (exit code {done.returncode})", done.stdout
    raise ConfigurationError(
        f"Horovod is installed, but its check with {ranks} rank(s) on {device}s {failure}. The "
        "wheel may come from another machine: try --force. Output:\n"
        f"{relevant_log_lines(output.decode(errors='replace'))}"
    )
