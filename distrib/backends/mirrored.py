"""One process, one replica a device: `tf.distribute.MirroredStrategy`.

Keras 3 (3.12 to 3.15) has two faults under this strategy, both worked around here and only here,
in the method that `fit` and `evaluate` call first, `TensorFlowTrainer._maybe_symbolic_build`:

- It averages the first batch over the replicas to learn its shape, which raises when that batch
  does not split evenly, and it reads that batch from the data for nothing. The dataset's
  `element_spec` holds the same shapes, so the build goes by that.
- `steps_per_execution` above 1 fails on every model ("You must feed a value for placeholder"):
  TensorFlow cannot run a conditional on the optional batches of a distributed iterator inside a
  loop. One step at a time gives the same numbers, so that is what runs, after a warning.

`tests/unit/backends/test_mirrored.py` fails when Keras mends either.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

from distrib.collectives import Collectives, SingleProcess
from distrib.errors import ConfigurationError


class MirroredBackend:
    """Train in this process on several devices that each hold a copy of the model.

    Args:
        devices: Number of devices. `None` takes every visible GPU, or the CPU where there is none.
            Without a GPU, that many logical CPU devices are made, which is slower than one but
            behaves like several GPUs.

    Raises:
        ConfigurationError: If there are not that many GPUs, or TensorFlow has already started and
            its CPU can no longer be divided.
    """

    kind = "mirrored"
    rank = 0
    size = 1
    local_rank = 0

    def __init__(self, devices: int | None = None) -> None:
        self.collectives: Collectives = SingleProcess()
        self._strategy = tf.distribute.MirroredStrategy(_device_names(devices))
        _patch_keras()

    @property
    def num_replicas(self) -> int:
        """Number of devices that share each global batch."""
        return int(self._strategy.num_replicas_in_sync)

    def scope(self) -> AbstractContextManager[Any]:
        """Return the strategy's scope."""
        return self._strategy.scope()

    def optimizer(self, optimizer: Any) -> Any:
        """Return `optimizer` as it is: under this strategy Keras reduces gradients itself."""
        return optimizer


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
    """Make `count` logical devices of the CPU; TensorFlow allows it before its first use only."""
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


def _patch_keras() -> None:
    TensorFlowTrainer._maybe_symbolic_build = _build_from_spec


def _build_from_spec(model: Any, iterator: Any = None, data_batch: Any = None) -> None:
    """Build model, metrics and optimizer under the strategy without touching the data."""
    if model._distribute_strategy is None:
        return
    if model.steps_per_execution > 1 and iterator is not None:
        warnings.warn(
            f"steps_per_execution={model.steps_per_execution} does not work with MirroredStrategy "
            "in this version of Keras; using 1, which computes the same.",
            stacklevel=3,
        )
        model.steps_per_execution = 1
        iterator.steps_per_execution = 1
    if iterator is not None:
        data_batch = iterator.data_adapter.get_tf_dataset().element_spec
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=data_batch)
