"""Which device a process takes that shares its host with others."""

from __future__ import annotations

import os

import tensorflow as tf

from distrib.errors import ConfigurationError


def take_gpu(local_rank: int) -> None:
    """Let this process see its own GPU only, and take no more of its memory than it needs.

    Args:
        local_rank: The process's number among those of the job on its host.

    Raises:
        ConfigurationError: If there are fewer GPUs than that.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return
    # Slurm and Kubernetes may show each process its own GPU and no other.
    index = 0 if len(gpus) == 1 and "CUDA_VISIBLE_DEVICES" in os.environ else local_rank
    if index >= len(gpus):
        raise ConfigurationError(
            f"Rank {local_rank} of this host has no GPU: TensorFlow sees {len(gpus)}. Start "
            "no more ranks on a host than it has GPUs, or set CUDA_VISIBLE_DEVICES=-1 to train on "
            "the CPU."
        )
    tf.config.set_visible_devices(gpus[index], "GPU")
    tf.config.experimental.set_memory_growth(gpus[index], True)
