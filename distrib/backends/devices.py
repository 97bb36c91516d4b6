"""Pins each process of a host to a GPU of its own."""

from __future__ import annotations

import os

import tensorflow as tf

from distrib.errors import ConfigurationError


def pin_gpu(local_rank: int) -> None:
    """Make only this process's GPU visible, and let its memory grow as needed.

    The same lines in a script written for Horovod, which let the memory of all GPUs grow, then
    change nothing and so raise nothing.

    Args:
        local_rank: The process's number among the job's processes on its host.

    Raises:
        ConfigurationError: If the host has no GPU of this number, but has others.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return
    # Slurm and Kubernetes may make only its own GPU visible to each process.
    index = 0 if len(gpus) == 1 and "CUDA_VISIBLE_DEVICES" in os.environ else local_rank
    if index >= len(gpus):
        raise ConfigurationError(
            f"Rank {local_rank} of this host has no GPU: TensorFlow sees {len(gpus)}. Start "
            "no more ranks on a host than it has GPUs, or set CUDA_VISIBLE_DEVICES=-1 to train on "
            "the CPU."
        )
    tf.config.set_visible_devices(gpus[index], "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
