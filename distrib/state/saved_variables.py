"""Every variable that a run needs to continue, and its value on another number of replicas.

In the model: its variables (weights, batch-norm statistics, seed counters), the optimizer's, the
metrics', and any other `tf.Variable`, `tf.random.Generator` or optimizer that the model holds, as
custom train steps do.

A variable that may differ between replicas, in this process or another, is saved once for each
replica. Weights and optimizer slots cannot differ, so they are saved once. Restored on another
number of replicas, statistics are averaged, metric sums are added up and split evenly, seeds are
derived from replica 0's, and counters are copied from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distrib.keras_compat.optimizers import accumulated_gradients_of
from distrib.state.variables import (
    held_by,
    replicas_of,
    seed_of_replica,
    seeds_of,
    weights_of_gradients,
)

GROUPS = MODEL, OPTIMIZER, METRICS, OTHER = "model", "optimizer", "metrics", "other"


@dataclass(frozen=True)
class SavedVariable:
    """One variable of the run.

    Attributes:
        group: `"model"`, `"optimizer"`, `"metrics"` or `"other"`.
        path: Its name, unique within the group.
        replicas: The `tf.Variable` of each replica in this process.
        count: Number of replicas in all processes.
        identical: Whether all replicas hold the same value, of which one copy is kept.
        seed: Whether it is the state of a seed generator.
    """

    group: str
    path: str
    replicas: tuple[Any, ...]
    count: int
    identical: bool
    seed: bool

    @property
    def names(self) -> list[str]:
        """Names of the arrays that are kept, one for each replica unless all are identical."""
        if self.identical or self.count == 1:
            return [self.path]
        return [f"{self.path}@{number}" for number in range(self.count)]

    @property
    def nbytes(self) -> int:
        """Size of a value in bytes."""
        first = self.replicas[0]
        return int(first.dtype.size * first.shape.num_elements())

    @property
    def values(self) -> list[npt.NDArray[Any]]:
        """What this process has of them: views, where TensorFlow keeps them in host memory."""
        replicas = self.replicas[:1] if self.identical else self.replicas
        # `numpy()` would copy, and `read_value()` take thrice the time. While a view lives,
        # TensorFlow assigns to new memory.
        return [
            np.asarray(tf.raw_ops.ReadVariableOp(resource=replica.handle, dtype=replica.dtype))
            for replica in replicas
        ]

    def describe(self) -> dict[str, Any]:
        """Return what the checkpoint says of the variable, JSON-able."""
        first = self.replicas[0]
        return {
            "group": self.group,
            "path": self.path,
            "shape": [int(size) for size in first.shape],
            "dtype": first.dtype.name,
            "names": self.names,
        }


def collect_variables(model: Any, metrics: bool, size: int) -> list[SavedVariable]:
    """List every variable of a model once, in an order that the same program always repeats.

    Args:
        model: A compiled `keras.Model` whose variables exist.
        metrics: Whether the metrics' variables are among them.
        size: Number of processes.
    """
    seen: set[int] = set()
    slots: list[SavedVariable] = []
    names: dict[tuple[str, str], int] = {}
    seeds = seeds_of(model)

    def add(group: str, variable: Any, identical: bool = False) -> None:
        replicas = replicas_of(variable)
        if id(replicas[0]) in seen or replicas[0].dtype == tf.string:
            return
        seen.update(id(replica) for replica in replicas)
        path = variable.path if isinstance(variable, keras.Variable) else replicas[0].name
        path = path.removesuffix(":0")
        count = names[group, path] = names.get((group, path), 0) + 1
        path = path if count == 1 else f"{path}~{count}"
        total = size * len(replicas)
        slots.append(SavedVariable(group, path, replicas, total, identical, id(variable) in seeds))

    weights = weights_of_gradients(model)
    for variable in model.variables:
        add(MODEL, variable, identical=id(variable) in weights)
    for variable, identical in _of_optimizer(model.optimizer):
        add(OPTIMIZER, variable, identical)
    for variable in model.metrics_variables:
        add(METRICS, variable)
    for variable, identical in _held(model):
        add(OTHER, variable, identical)
    return slots if metrics else [slot for slot in slots if slot.group != METRICS]


def _of_optimizer(optimizer: Any) -> Iterator[tuple[Any, bool]]:
    """All variables of an optimizer, and whether every replica has the same."""
    if optimizer is not None:
        different = {id(variable) for variable in accumulated_gradients_of(optimizer)}
        for variable in optimizer.variables:
            yield variable, id(variable) not in different


def _held(model: Any) -> Iterator[tuple[Any, bool]]:
    """All variables in the model's attributes."""
    for held in held_by(model):
        if isinstance(held, keras.optimizers.Optimizer):
            yield from _of_optimizer(held)
        elif isinstance(held, keras.Variable | tf.Variable):
            yield held, False


def redistribute(slot: SavedVariable, values: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Turn one value a replica, or one for all, into values for this run's replicas.

    Args:
        slot: The variable.
        values: As they were saved.
    """
    count = slot.count
    if len(values) == count:
        return values
    if slot.seed:
        return [seed_of_replica(values[0], number) for number in range(count)]
    if slot.group == METRICS:
        total = np.sum(values, axis=0, dtype=values[0].dtype)
        if total.dtype.kind in "iub":
            return [total] + [np.zeros_like(total)] * (count - 1)
        # In equal parts, because Keras shows the mean of the replicas' results after a batch.
        return [(total / count).astype(total.dtype)] * count
    if len(values) == 1 or values[0].dtype.kind in "iub":
        return [values[0]] * count
    mean = np.mean([value.astype(np.float64) for value in values], axis=0)
    return [mean.astype(values[0].dtype)] * count
