"""A checkpoint of a run, verified and in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distrib.checkpoint import training_item
from distrib.checkpoint.layout import ArrayGroups
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.state import codec
from distrib.state.layer_state import LayerState
from distrib.state.training_goal import TrainingGoal
from distrib.state.training_position import Logs, TrainingPosition


@dataclass(frozen=True)
class RunCheckpoint:
    """What one checkpoint holds.

    Attributes:
        place: Path or URL that it was read from.
        training: The JSON item.
        arrays: By group and name.
    """

    place: str
    training: Mapping[str, Any]
    arrays: ArrayGroups

    @classmethod
    def load(cls, stored: StoredCheckpoint) -> RunCheckpoint:
        """Read a checkpoint.

        Raises:
            DamagedCheckpointError: If its bytes are not those that were committed.
        """
        loaded = stored.read()
        return cls(str(stored.location), loaded.training, loaded.arrays)

    @property
    def position(self) -> TrainingPosition:
        """Where the run stood."""
        return TrainingPosition(**self.training[training_item.POSITION])

    @property
    def logs(self) -> Logs:
        """What Keras had reported."""
        return Logs(**self.get(training_item.LOGS))

    @property
    def ranks(self) -> int:
        """Number of ranks that have saved it."""
        return 1 + len(self.training[training_item.OTHER_RANKS])

    def learning_rates(self) -> list[float]:
        """Return the values of the optimizers' learning-rate variables."""
        variables = self.training[training_item.VARIABLES_STATE]["variables"]
        return [
            float(self.arrays[one["group"]][one["names"][0]])
            for one in variables
            if one["path"].endswith("learning_rate") and one["shape"] == []
        ]

    @property
    def goal(self) -> TrainingGoal | None:
        """How far the run was meant to train; `None` if an old version has saved it."""
        goal = self.training.get(training_item.GOAL)
        return None if goal is None else TrainingGoal.decode(goal)

    @property
    def layers(self) -> list[LayerState] | None:
        """State of layers that is no variable; `None` in a checkpoint of an older version."""
        return self.get(training_item.LAYERS) if training_item.LAYERS in self.training else None

    def get(self, name: str) -> Any:
        """Return one of the nested structures, with its arrays."""
        arrays = self.arrays.get(training_item.CALLBACK_ARRAYS, {})
        # Callbacks may change in place what they are given.
        own = {key: np.require(array, requirements="W") for key, array in arrays.items()}
        return codec.decode(self.training[name], own)

    def own_states(self, rank: int, size: int) -> dict[str, Any]:
        """Return the states of callbacks and random generators that a rank goes on with."""
        states: dict[str, Any] = self.get(training_item.STATES)
        others = self.get(training_item.OTHER_RANKS)
        if rank > 0 and size == 1 + len(others):
            states.update(others[rank - 1])
        return states
