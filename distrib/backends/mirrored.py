"""One process with one replica on each device: `tf.distribute.MirroredStrategy`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

from distrib.collectives import Collectives, SingleProcess
from distrib.errors import ConfigurationError
from distrib.keras_compat import strategy_faults


class MirroredBackend:
    """Trains in this process on several devices that each hold a copy of the model.

    Args:
        devices: Number of devices. On a host without GPUs the CPU is divided into this many logical
            devices, which are slower than one but behave like several GPUs. Defaults to `None`: all
            visible GPUs, or the CPU if there are none.

    Raises:
        ConfigurationError: If there are fewer GPUs, or TensorFlow has started already, so that the
            CPU can no longer be divided.
    """

    kind = "mirrored"
    rank = 0
    size = 1
    local_rank = 0
    step_payload = None

    def __init__(self, devices: int | None = None) -> None:
        self.collectives: Collectives = SingleProcess()
        self._strategy = tf.distribute.MirroredStrategy(_device_names(devices))
        strategy_faults.build_by_element_spec()

    @property
    def num_replicas(self) -> int:
        """Number of devices that share each global batch."""
        return int(self._strategy.num_replicas_in_sync)

    def scope(self) -> AbstractContextManager[Any]:
        """Return the strategy's scope."""
        return self._strategy.scope()

    def optimizer(
        self, optimizer: Any, compression: Any, backward_passes_per_step: int, op: Any
    ) -> Any:
        """Return `optimizer` as it is: under this strategy Keras reduces gradients itself.

        Raises:
            ConfigurationError: If `op` or `backward_passes_per_step` differs from Keras's own.
        """
        if op != "average" or backward_passes_per_step != 1:
            raise ConfigurationError(
                f"`op={op!r}`, `backward_passes_per_step={backward_passes_per_step}`: under "
                "MirroredStrategy Keras averages gradients over the GPUs at every step; start one "
                "process for each GPU instead (`distrib run`)."
            )
        return optimizer

    def translate_error(self, error: BaseException) -> BaseException:
        """Return `error`: a single process has no peers to lose."""
        return error


def _device_names(devices: int | None) -> Sequence[str]:
    if devices is not None and devices < 1:
        raise ConfigurationError(f"`devices={devices}` must be at least 1.")
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        count = len(gpus) if devices is None else devices
        if count > len(gpus):
            raise ConfigurationError(
                f"`devices={devices}` asks for more GPUs than the {len(gpus)} that TensorFlow "
                "sees; check CUDA_VISIBLE_DEVICES."
            )
        return [f"GPU:{i}" for i in range(count)]
    count = devices or 1
    _divide_cpu(count)
    return [f"CPU:{i}" for i in range(count)]


def _divide_cpu(count: int) -> None:
    """Divide the CPU into `count` logical devices, which TensorFlow allows before its first use."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    existing = tf.config.get_logical_device_configuration(cpu)
    if len(existing or [None]) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:
        raise ConfigurationError(
            f"`devices={count}`: the CPU cannot be divided any more because TensorFlow has "
            "started; call distrib.init() before anything else uses TensorFlow."
        ) from error
