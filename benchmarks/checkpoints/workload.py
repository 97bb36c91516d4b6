"""The models that the contenders train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

import distrib


@dataclass(frozen=True)
class Workload:
    """A model of dense layers, and when to save it.

    Args:
        inputs: Number of input features.
        units: Width of each layer.
        batch_size: Examples per step.
        save_freq: Steps between saves.
        saves: Number of saves.
        warmup_steps: First steps that are not measured.
    """

    inputs: int
    units: tuple[int, ...]
    batch_size: int
    save_freq: int
    saves: int
    warmup_steps: int

    @property
    def steps(self) -> int:
        """Steps of the whole training: the last save also needs a step after it."""
        return self.save_freq * (self.saves + 1) - 1

    def model(self) -> Any:
        layers = [keras.layers.Dense(units, activation="relu") for units in self.units]
        model = keras.Sequential([keras.Input((self.inputs,)), *layers])
        model.compile("adam", "mse")
        return model

    def data(self, steps: int) -> Any:
        """Return a dataset of random float32 examples for a number of steps."""
        rng = np.random.default_rng(0)
        count = steps * self.batch_size
        x, y = rng.random((count, self.inputs)), rng.random((count, self.units[-1]))
        arrays = x.astype(np.float32), y.astype(np.float32)
        return distrib.init("local").dataset(arrays, self.batch_size)


LARGE = Workload(
    inputs=2048, units=(2048,) * 12, batch_size=32, save_freq=8, saves=3, warmup_steps=2
)
SMALL = Workload(inputs=4, units=(1,), batch_size=8, save_freq=200, saves=25, warmup_steps=100)


def variables(model: Any) -> list[Any]:
    """Return all variables that a checkpoint of the model holds."""
    return [*model.weights, *model.optimizer.variables]
