"""`TrainingState`: the one place that lists everything a run needs to continue.

In the model: its variables (weights, batch-norm statistics, seed counters), the optimizer's, the
metrics', and any other `tf.Variable`, `tf.random.Generator` or optimizer that the model holds, as
custom train steps do. In the process: the random generators of Keras, NumPy and Python. What the
callbacks keep is theirs to give (`StatefulCallback`).

A variable that may differ between replicas, in this process or another, is kept once a replica.
Weights and optimizer slots cannot differ, so they are kept once. Restored on another number of
replicas, statistics are averaged, metric sums are added up and shared out, seeds are made anew from
the first one, and counters are taken from it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distrib.checkpoint.layout import ArrayGroups
from distrib.checkpoint.training_item import format_variable, identity
from distrib.cluster import current
from distrib.errors import CheckpointMismatchError, ConfigurationError
from distrib.keras_compat.layers import global_seed_generator
from distrib.keras_compat.optimizers import accumulated_gradients_of
from distrib.state.variables import (
    replicas_of,
    seed_of_replica,
    seeds_of,
    weights_of_gradients,
)

GROUPS = MODEL, OPTIMIZER, METRICS, OTHER = "model", "optimizer", "metrics", "other"
_GLOBAL_SEED = "keras_global_seed"
_SHOWN_DIFFERENCES = 5


@runtime_checkable
class StatefulCallback(Protocol):
    """A callback, distrib's or anybody's, whose state is saved with the checkpoint.

    Values may be None, bool, int, float, str, numpy arrays of numbers, and lists, tuples and
    str-keyed dicts of these. `set_state` is called after every callback's `on_train_begin`, and
    once more after `on_epoch_begin` when the run goes on in the middle of an epoch.
    """

    def get_state(self) -> dict[str, Any]:
        """Return a copy of all that the callback needs to continue."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned, perhaps in another process."""


@dataclass(frozen=True)
class VariableSlot:
    """One variable of the run.

    Attributes:
        group: `"model"`, `"optimizer"`, `"metrics"` or `"other"`.
        path: Its name, unique within the group.
        replicas: The `tf.Variable` of each replica in this process.
        count: Number of replicas in all processes.
        same: Whether all replicas hold the same value, of which one copy is kept.
        seed: Whether it is the state of a seed generator.
    """

    group: str
    path: str
    replicas: tuple[Any, ...]
    count: int
    same: bool
    seed: bool

    @property
    def names(self) -> list[str]:
        """Names of the arrays that are kept, one for each replica unless all are the same."""
        if self.same or self.count == 1:
            return [self.path]
        return [f"{self.path}@{number}" for number in range(self.count)]

    @property
    def values(self) -> list[npt.NDArray[Any]]:
        """What this process has of them: views, where TensorFlow keeps them in host memory."""
        replicas = self.replicas[:1] if self.same else self.replicas
        # `numpy()` would copy. While a view lives, TensorFlow assigns to new memory.
        return [np.asarray(replica.read_value()) for replica in replicas]

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


class HostBuffers:
    """Host memory that every snapshot reuses, so that only the first one pays for its pages."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], npt.NDArray[Any]] = {}

    def copy(self, group: str, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Copy `value` into the buffer of that name and return the buffer."""
        buffer = self._buffers.get((group, name))
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            self._buffers[group, name] = buffer = np.array(value, copy=True)
        else:
            np.copyto(buffer, value)
        return buffer


Overrides = Mapping[tuple[str, str], list[npt.NDArray[Any]]]


class TrainingState:
    """All variables of a built model and what trains it, on all ranks.

    Args:
        model: A compiled `keras.Model` whose variables exist (see `distrib.state.build`).
        metrics: Whether the metrics' variables are part of it. A run that is saved only between
            epochs, where Keras resets them, does not need them, and may not have built them yet.
    """

    def __init__(self, model: Any, metrics: bool = True) -> None:
        self._model = model
        self._metrics = metrics
        self._cluster = current()
        self._slots = _collect(model, metrics, self._cluster.size)
        # Every checkpoint carries it, and it never changes.
        self._description = {
            "optimizer": _optimizer_name(model.optimizer),
            "variables": [slot.describe() for slot in self._slots],
        }

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint must match, JSON-able."""
        return self._description

    def check(self, saved: Mapping[str, Any]) -> None:
        """Compare a checkpoint's description with the model at hand.

        Raises:
            CheckpointMismatchError: Names the first differences.
        """
        differences = list(_differences(saved, self.describe()))
        if differences:
            shown = "\n".join(f"  {line}" for line in differences[:_SHOWN_DIFFERENCES])
            rest = len(differences) - _SHOWN_DIFFERENCES
            more = f"\n  and {rest} more" if rest > 0 else ""
            raise CheckpointMismatchError(
                "The checkpoint was written by another model or optimizer:\n"
                f"{shown}{more}\n"
                "Nothing was changed. Build the same model, or give this run its own `directory`."
            )

    def check_complete(self) -> None:
        """Check, after a step, that no variable appeared that the build did not create.

        Raises:
            ConfigurationError: Names the first such variable.
        """
        known = {id(slot.replicas[0]) for slot in self._slots}
        for slot in _collect(self._model, self._metrics, self._cluster.size):
            if id(slot.replicas[0]) not in known:
                raise ConfigurationError(
                    f"The variable {slot.path!r} ({slot.group}) was created by the first train "
                    "step, so a checkpoint could not be restored into it. Create it before `fit`: "
                    "build every layer and optimizer that the model's `train_step` uses."
                )

    def copy(self, groups: Sequence[str]) -> Overrides:
        """Return copies of what this process has of some groups, for a later `snapshot`."""
        return {
            (slot.group, slot.path): [np.array(value) for value in slot.values]
            for slot in self._slots
            if slot.group in groups
        }

    def snapshot(
        self, buffers: HostBuffers, overrides: Overrides | None = None
    ) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """Copy all variables to the chief's host memory. All ranks call it together.

        Args:
            buffers: Receives the copies; what an earlier snapshot put there is overwritten.
            overrides: From `copy`: takes the place of what these variables hold now.

        Returns:
            The copies by group and name; empty on ranks other than the chief.
        """
        overrides = overrides or {}

        def values(slot: VariableSlot) -> list[npt.NDArray[Any]]:
            return overrides.get((slot.group, slot.path)) or slot.values

        different = [values(slot) for slot in self._slots if not slot.same]
        ranks = iter(zip(*self._cluster.collectives.allgather(different), strict=True))
        if not self._cluster.is_chief:
            return {}
        copies: dict[str, dict[str, npt.NDArray[Any]]] = {group: {} for group in GROUPS}
        for slot in self._slots:
            parts = values(slot) if slot.same else [part for rank in next(ranks) for part in rank]
            for name, part in zip(slot.names, parts, strict=True):
                copies[slot.group][name] = buffers.copy(slot.group, name, part)
        return copies

    def synchronize(self) -> None:
        """Give all ranks the chief's values. All ranks call it together.

        Raises:
            ConfigurationError: If a rank has built another model than the chief.
        """
        self._check_alike()
        chiefs = [slot.values[0] for slot in self._slots] if self._cluster.is_chief else []
        chiefs = self._cluster.collectives.broadcast(chiefs)
        for slot, value in zip(self._slots, chiefs, strict=True):
            self._assign(slot, [value])

    def restore(self, saved: Mapping[str, Any], arrays: ArrayGroups) -> None:
        """Assign a checkpoint's arrays to the variables; `check` it first.

        Args:
            saved: The checkpoint's description.
            arrays: The checkpoint's arrays.
        """
        for slot, entry in zip(self._slots, saved["variables"], strict=True):
            group = arrays.get(entry["group"], {})
            self._assign(slot, [group[name] for name in entry["names"]])

    def _assign(self, slot: VariableSlot, values: list[npt.NDArray[Any]]) -> None:
        """Give each replica of this process its own of the values of all replicas."""
        values = _redistribute(slot, values)
        first = 0 if slot.same else self._cluster.rank * len(slot.replicas)
        for number, replica in enumerate(slot.replicas):
            replica.assign(values[0] if slot.same else values[first + number])

    def _check_alike(self) -> None:
        descriptions = self._cluster.collectives.allgather(self._description)
        for rank, description in enumerate(descriptions):
            differences = list(_differences(descriptions[0], description, "rank 0", f"rank {rank}"))
            if differences:
                raise ConfigurationError(
                    f"The ranks have built different models:\n  {differences[0]}\n"
                    "The script has to do the same on all of them up to `fit`."
                )


def random_state() -> dict[str, Any]:
    """Return the state of the process's random generators: Keras's, NumPy's and Python's."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }
    generator = global_seed_generator(create=False)
    if generator is not None:
        state[_GLOBAL_SEED] = replicas_of(generator.state)[0].numpy()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Continue the random generators from what `random_state` returned."""
    if _GLOBAL_SEED in state:
        for replica in replicas_of(global_seed_generator(create=True).state):
            replica.assign(state[_GLOBAL_SEED])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])


def _collect(model: Any, metrics: bool, size: int) -> list[VariableSlot]:
    """List every variable once, in an order that the same program always repeats."""
    seen: set[int] = set()
    slots: list[VariableSlot] = []
    names: dict[tuple[str, str], int] = {}
    seeds = seeds_of(model)

    def add(group: str, variable: Any, same: bool = False) -> None:
        replicas = replicas_of(variable)
        if id(replicas[0]) in seen or replicas[0].dtype == tf.string:
            return
        seen.update(id(replica) for replica in replicas)
        path = variable.path if isinstance(variable, keras.Variable) else replicas[0].name
        path = path.removesuffix(":0")
        count = names[group, path] = names.get((group, path), 0) + 1
        path = path if count == 1 else f"{path}~{count}"
        total = size * len(replicas)
        slots.append(VariableSlot(group, path, replicas, total, same, id(variable) in seeds))

    weights = weights_of_gradients(model)
    for variable in model.variables:
        add(MODEL, variable, same=id(variable) in weights)
    for variable, same in _of_optimizer(model.optimizer):
        add(OPTIMIZER, variable, same)
    for variable in model.metrics_variables:
        add(METRICS, variable)
    for variable, same in _held(model):
        add(OTHER, variable, same)
    return slots if metrics else [slot for slot in slots if slot.group != METRICS]


def _of_optimizer(optimizer: Any) -> Iterator[tuple[Any, bool]]:
    """All variables of an optimizer, and whether every replica has the same."""
    if optimizer is not None:
        different = {id(variable) for variable in accumulated_gradients_of(optimizer)}
        for variable in optimizer.variables:
            yield variable, id(variable) not in different


def _held(model: Any) -> Iterator[tuple[Any, bool]]:
    """All variables in the model's attributes, as `tf.train.Checkpoint` would find them."""
    for held in tf.train.TrackableView(model).descendants():
        if isinstance(held, keras.optimizers.Optimizer):
            yield from _of_optimizer(held)
        elif isinstance(held, keras.Variable | tf.Variable):
            yield held, False


def _redistribute(slot: VariableSlot, values: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Turn one value a replica, or one for all, into values for this run's replicas."""
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


def _differences(
    saved: Mapping[str, Any],
    here: Mapping[str, Any],
    one: str = "checkpoint",
    other: str = "this run",
) -> Iterator[str]:
    if saved["optimizer"] != here["optimizer"]:
        yield f"optimizer: {one} has {saved['optimizer']}, {other} has {here['optimizer']}"
    for old, new in zip_longest(saved["variables"], here["variables"]):
        if old is None:
            yield f"{new['group']}: only {other} has {format_variable(new)}"
        elif new is None:
            the = "the " * (one == "checkpoint")
            yield f"{old['group']}: only {the}{one} has {format_variable(old)}"
        elif identity(old) != identity(new):
            shown = format_variable(old), format_variable(new)
            yield f"{old['group']}: {one} has {shown[0]}, {other} has {shown[1]}"


def _optimizer_name(optimizer: Any) -> str | None:
    if optimizer is None:
        return None
    inner = getattr(optimizer, "inner_optimizer", None)
    name = type(optimizer).__name__
    return f"{name}({_optimizer_name(inner)})" if inner is not None else name
