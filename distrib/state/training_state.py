"""`TrainingState`: all variables of a run, copied to the chief's memory and restored from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from distrib.checkpoint.layout import ArrayGroups
from distrib.cluster import current
from distrib.errors import CheckpointMismatchError, ConfigurationError
from distrib.state import codec
from distrib.state.differences import differences_between
from distrib.state.host_copies import HostBuffers, copy_all
from distrib.state.initial_state import Matches, find_counterparts
from distrib.state.layer_state import LayerState, LayerStates
from distrib.state.saved_variables import (
    GROUPS,
    METRICS,
    MODEL,
    OPTIMIZER,
    SavedVariable,
    collect_variables,
    redistribute,
)

Overrides = Mapping[tuple[str, str], list[npt.NDArray[Any]]]


class TrainingState:
    """All variables of a built model, its optimizer and its metrics, on all ranks.

    Args:
        model: A compiled `keras.Model` whose variables exist (see `distrib.state.build`).
        metrics: Whether the metrics' variables are part of it. A run that is saved only between
            epochs, where Keras resets them, does not need them, and may not have built them yet.

    Attributes:
        layers: What the model's layers hold beside variables.
    """

    def __init__(self, model: Any, metrics: bool = True) -> None:
        self._model = model
        self._metrics = metrics
        self._cluster = current()
        self._slots = collect_variables(model, metrics, self._cluster.size)
        self.layers = LayerStates(model)
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
            CheckpointMismatchError: Names the differences.
        """
        here = {**self.describe(), "variables": [s.describe() for s in self._slots_in(saved)]}
        differences = list(differences_between(saved, here))
        if differences:
            shown = "\n".join(f"  {line}" for line in differences)
            raise CheckpointMismatchError(
                "The checkpoint was written by another model or optimizer:\n"
                f"{shown}\n"
                "Nothing was changed. Build the same model, or give this run its own `directory` "
                "(and `initialize_from=...`, to begin with these weights)."
            )

    def check_complete(self) -> None:
        """Check, after a step, that no variable appeared that the build did not create.

        Raises:
            ConfigurationError: Names the first such variable.
        """
        known = {id(slot.replicas[0]) for slot in self._slots}
        for slot in collect_variables(self._model, self._metrics, self._cluster.size):
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

        def values(slot: SavedVariable) -> list[npt.NDArray[Any]]:
            return overrides.get((slot.group, slot.path)) or slot.values

        different = [slot for slot in self._slots if not slot.identical]
        ranks = self._cluster.collectives.allgather([values(slot) for slot in different])
        if not self._cluster.is_chief:
            return {}
        gathered = {
            (slot.group, slot.path): [part for rank in of_ranks for part in rank]
            for slot, of_ranks in zip(different, zip(*ranks, strict=True), strict=True)
        }

        copies: dict[str, dict[str, npt.NDArray[Any]]] = {group: {} for group in GROUPS}
        copied = copy_all(
            self._slots,
            lambda slot: gathered.get((slot.group, slot.path)) or values(slot),
            buffers,
        )
        for slot, arrays in zip(self._slots, copied, strict=True):
            copies[slot.group].update(zip(slot.names, arrays, strict=True))
        return copies

    def synchronize(self) -> None:
        """Give all ranks the chief's values. All ranks call it together.

        Raises:
            ConfigurationError: If a rank has built another model than the chief.
        """
        self._check_alike()
        layers = self._chiefs_layers()
        chiefs = [slot.values[0] for slot in self._slots] if self._cluster.is_chief else []
        chiefs = self._cluster.collectives.broadcast(chiefs)
        for slot, value in zip(self._slots, chiefs, strict=True):
            self._assign(slot, [value])
        if layers is not None:
            self._load_layers(layers, [[value] for value in chiefs], self._description)

    def restore(
        self,
        saved: Mapping[str, Any],
        arrays: ArrayGroups,
        layers: Sequence[LayerState] | None = None,
    ) -> list[str]:
        """Assign a checkpoint's arrays to the variables, and load its layers; `check` it first.

        Args:
            saved: The checkpoint's description.
            arrays: The checkpoint's arrays.
            layers: The checkpoint's state of layers, if it has any.

        Returns:
            The names of the layers that held another vocabulary, or had learned other attributes.
        """
        values = []
        for slot, entry in zip(self._slots_in(saved), saved["variables"], strict=True):
            group = arrays.get(entry["group"], {})
            values.append([group[name] for name in entry["names"]])
            self._assign(slot, values[-1])
        return self._load_layers(layers, values, saved)

    def _slots_in(self, saved: Mapping[str, Any]) -> list[SavedVariable]:
        """Return the variables whose counterparts a checkpoint may have.

        Data that were not resumed within an epoch, as arrays in old versions, were saved without
        the metrics: an epoch resets them.
        """
        with_metrics = any(entry["group"] == METRICS for entry in saved["variables"])
        return [slot for slot in self._slots if with_metrics or slot.group != METRICS]

    def _load_layers(
        self,
        layers: Sequence[LayerState] | None,
        values: Sequence[list[npt.NDArray[Any]]],
        saved: Mapping[str, Any],
    ) -> list[str]:
        touched, replaced = self.layers.load(layers)
        # A layer may have made new variables in place of old ones.
        self._slots = collect_variables(self._model, self._metrics, self._cluster.size)
        for slot, own in zip(self._slots_in(saved), values, strict=True):
            if id(slot.replicas[0]) in touched:
                self._assign(slot, own)
        return replaced

    def _chiefs_layers(self) -> list[LayerState] | None:
        """Return the chief's state of layers; `None` if all ranks have it already."""
        collectives = self._cluster.collectives
        mine = self.layers.capture()
        own = self.layers.variables
        digests = collectives.allgather(codec.digest([mine, own]))
        if len(set(digests)) == 1:
            return None
        chiefs: list[LayerState] = collectives.broadcast(mine)
        self.layers.check(chiefs)
        return chiefs

    def initialize(
        self,
        saved: Mapping[str, Any],
        arrays: ArrayGroups,
        layers: Sequence[LayerState] | None,
        restore: Sequence[str],
    ) -> Matches:
        """Assign those of another run's arrays that have a counterpart here.

        Args:
            saved: The description in the other run's checkpoint.
            arrays: The checkpoint's arrays.
            layers: The checkpoint's state of layers, if it has any.
            restore: See `find_counterparts`.

        Raises:
            CheckpointMismatchError: If no variable has a counterpart, or the optimizer is to be
                restored and is another one. Nothing was changed.
        """
        here = self.describe()
        if OPTIMIZER in restore and saved["optimizer"] != here["optimizer"]:
            raise CheckpointMismatchError(
                f"`restore={tuple(restore)}`: the other run was trained with {saved['optimizer']}, "
                f"this one with {here['optimizer']}. Take over the weights only: "
                '`restore=("model",)`.'
            )
        matches = find_counterparts(saved["variables"], self._slots, restore)
        if not any(slot.group == MODEL for slot, _ in matches.pairs):
            lines = "".join(f"\n  {line}" for line in matches.lines())
            raise CheckpointMismatchError(f"None of the model's weights are in it:{lines}")
        # Layers with a vocabulary of the other run may make new variables.
        counterparts, kept = self.layers.counterparts(layers or [])
        _, replaced = self.layers.load(counterparts)
        self._slots = collect_variables(self._model, self._metrics, self._cluster.size)
        matches = replace(
            find_counterparts(saved["variables"], self._slots, restore),
            replaced=replaced,
            kept=kept,
        )
        for _ in range(2):  # Once for what layers derive from variables, once for the variables.
            for slot, entry in matches.pairs:
                group = arrays.get(entry["group"], {})
                self._assign(slot, [group[name] for name in entry["names"]])
            self.layers.load(None)
        return matches

    def _assign(self, slot: SavedVariable, values: list[npt.NDArray[Any]]) -> None:
        """Give each replica of this process its own of the values of all replicas."""
        values = redistribute(slot, values)
        first = 0 if slot.identical else self._cluster.rank * len(slot.replicas)
        for number, replica in enumerate(slot.replicas):
            replica.assign(values[0] if slot.identical else values[first + number])

    def _check_alike(self) -> None:
        descriptions = self._cluster.collectives.allgather(self._description)
        for rank, description in enumerate(descriptions):
            differences = list(
                differences_between(descriptions[0], description, "rank 0", f"rank {rank}")
            )
            if differences:
                raise ConfigurationError(
                    f"The ranks have built different models:\n  {differences[0]}\n"
                    "The script has to do the same on all of them up to `fit`."
                )


def _optimizer_name(optimizer: Any) -> str | None:
    if optimizer is None:
        return None
    inner = getattr(optimizer, "inner_optimizer", None)
    name = type(optimizer).__name__
    return f"{name}({_optimizer_name(inner)})" if inner is not None else name
