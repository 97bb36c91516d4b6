"""All that a run needs to continue: gathered into a checkpoint, and restored from one.

It is gathered from the variables (`TrainingState`), every callback that has state, Keras's
`History`, the random generators, the last `logs`, and a description of the training data, whose
position means nothing on other data.

Of callbacks and random generators the chief's states are kept, and those of other ranks where they
differ. All ranks capture together, and each restores its own.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras

from distrib.checkpoint import training_item
from distrib.checkpoint.saver import Content
from distrib.cluster import current
from distrib.data.dataset import Dataset
from distrib.data.resumable import ResumableDataset
from distrib.errors import ConfigurationError
from distrib.gradients.step_payload import Request
from distrib.keras_compat.layers import layers_of
from distrib.keras_compat.logs import plain_logs
from distrib.log import log
from distrib.state import codec
from distrib.state.callback_state import SavedState, StatefulCallback, saved_states
from distrib.state.data_differences import CONTENTS, CONVERTED, check_data
from distrib.state.host_copies import HostBuffers
from distrib.state.initial_state import Matches
from distrib.state.plain_values import Rebuilder, snapshot
from distrib.state.random_generators import random_state, set_random_state
from distrib.state.run_checkpoint import RunCheckpoint
from distrib.state.run_record import record_of, versions
from distrib.state.saved_variables import METRICS, OTHER
from distrib.state.script_changes import Change, changes_between
from distrib.state.training_goal import TrainingGoal
from distrib.state.training_position import Logs, TrainingPosition
from distrib.state.training_state import Overrides, TrainingState
from distrib.state.variables import ids_of_variables


@dataclass(frozen=True)
class BeforeValidation:
    """What validation changes, as it was before."""

    variables: Overrides
    callbacks: dict[str, dict[str, Any]]
    random: dict[str, Any]


class RunState:
    """All parts of one `fit`.

    Args:
        model: Compiled, with all its variables.
        data: Description of the training data; `None` if nothing is known of them.
        arguments: Of `fit`, by name.
        callbacks: Those that the user has passed to `fit`.
        within_epochs: Whether it may be saved within an epoch, where metrics hold something.
            Defaults to `False`.
        fingerprint_of: See `record_of`. Defaults to reading the data.
    """

    def __init__(
        self,
        model: Any,
        data: Mapping[str, Any] | None,
        arguments: Mapping[str, Any],
        callbacks: Sequence[Any],
        within_epochs: bool = False,
        fingerprint_of: Callable[[Any], dict[str, Any]] = Dataset.fingerprint,
    ) -> None:
        self._model = model
        self._data = data
        self._config = config_of(model)
        self._made_of: dict[str, Any] = {training_item.VERSIONS: versions()}
        if current().is_chief:  # Which writes it.
            record = record_of(model, self._config, arguments, callbacks, fingerprint_of)
            self._made_of[training_item.RECORD] = record
        self._state = TrainingState(model, metrics=within_epochs)
        self._buffers = HostBuffers()
        # Not the contents, which may be rounded otherwise at each start.
        left_out = (CONTENTS, CONVERTED)
        kind = data and {key: value for key, value in data.items() if key not in left_out}
        self._fingerprint = codec.digest([self._state.describe(), kind])
        self._callbacks: list[SavedState] = []
        self._optimizer = model.optimizer
        self._trainable = _trainable(model)
        self._goal: Callable[[], dict[str, Any]] | None = None

    def add_callbacks(
        self,
        callbacks: Sequence[Any],
        goal: TrainingGoal,
        dataset: ResumableDataset | None,
        validation_dataset: ResumableDataset | None = None,
    ) -> None:
        """Add what else is saved of the `fit`.

        Args:
            callbacks: After their `on_train_begin`.
            goal: How far it is meant to train.
            dataset: Its training data, whose state is saved if they have any.
            validation_dataset: The same for its validation data. Defaults to `None`.
        """
        self._callbacks = saved_states(callbacks, ids_of_variables(self._model))
        for name, data in (
            (training_item.DATA_STATE, dataset),
            (training_item.VALIDATION_STATE, validation_dataset),
        ):
            if isinstance(data, StatefulCallback):
                state = SavedState(name, data, data.acts_in_validation, data.is_shared)
                self._callbacks.append(state)
        self._goal = functools.partial(goal.encode, callbacks)

    def check(self, checkpoint: RunCheckpoint) -> None:
        """Compare a checkpoint with the model and the data at hand.

        Raises:
            CheckpointMismatchError: Names the first differences. Nothing was changed.
        """
        check_data(checkpoint.training[training_item.DATA], self._data)
        self._state.check(checkpoint.training[training_item.VARIABLES_STATE])
        if checkpoint.layers is not None:
            self._state.layers.check(checkpoint.layers)

    def changes_since(self, checkpoint: RunCheckpoint) -> list[Change]:
        """Return what has changed in the script. All ranks call it together, for the same answer.

        Args:
            checkpoint: Which `check` has found to fit.
        """
        changes = None
        if current().is_chief:
            rates = checkpoint.learning_rates()
            changes = changes_between(checkpoint.training, self._made_of, rates)
        changes = current().collectives.broadcast(changes)
        assert changes is not None
        return changes

    def initialize(self, checkpoint: RunCheckpoint, restore: Sequence[str]) -> Matches:
        """Begin with the weights of another run; see `TrainingState.initialize`."""
        saved = checkpoint.training[training_item.VARIABLES_STATE]
        return self._state.initialize(saved, checkpoint.arrays, checkpoint.layers, restore)

    def check_complete(self) -> None:
        """Check after a step that the model still has the variables that are saved.

        Raises:
            ConfigurationError: If the step created variables (see `TrainingState`), or a callback
                has compiled the model anew.
        """
        if self._model.optimizer is not self._optimizer:
            raise ConfigurationError(
                f"A callback has compiled {self._model.name!r} anew within `fit`, which cannot be "
                "resumed. Call `fit` once for each phase of the training, with a directory of its "
                "own."
            )
        trainable = _trainable(self._model)
        changed = [name for name, flag in trainable.items() if self._trainable.get(name) != flag]
        if changed and current().is_chief:
            warnings.warn(
                f"A callback has changed `trainable` of {', '.join(changed)} within `fit`. Keras "
                "notices with the next `compile`, but a resumed run may notice at once and end "
                "differently. Call `fit` once for each phase of the training.",
                stacklevel=2,
            )
        self._trainable = trainable
        self._state.check_complete()

    def warn_about_unadapted_layers(self) -> None:
        """Name layers without a vocabulary, which would fail in TensorFlow's words."""
        for name in self._state.layers.not_adapted:
            warnings.warn(
                f"The layer {name!r} has no vocabulary: if the model uses it, training fails with "
                '"Table not initialized". Call its `adapt` before `fit`.',
                stacklevel=2,
            )

    def before_validation(self) -> BeforeValidation:
        """Copy what validation is about to change."""
        return BeforeValidation(
            self._state.copy((METRICS, OTHER)),
            {
                state.name: state.holder.get_state()
                for state in self._callbacks
                if state.acts_in_validation
            },
            random_state(),
        )

    def capture(
        self, position: TrainingPosition, logs: Logs, before: BeforeValidation | None
    ) -> Content | None:
        """Return the present state of the run. All ranks call it together.

        Args:
            position: Where the run stands.
            logs: What Keras reported last.
            before: Takes the place of what the validation in progress has changed.

        Returns:
            The state, in memory that the next call will reuse; `None` on all ranks but the chief.
        """
        arrays = self._state.snapshot(self._buffers, before.variables if before else None)
        states, others = _differing(self._own_states(before))
        if not current().is_chief:
            return None
        kept: codec.Arrays = {}

        def split(value: Any, name: str) -> Any:
            encoded, found = codec.encode(value, name)
            kept.update(found)
            return encoded

        history = self._model.history
        training = {
            training_item.POSITION: asdict(position),
            training_item.MODEL_CONFIG: self._config,
            training_item.VARIABLES_STATE: self._state.describe(),
            training_item.DATA: self._data,
            training_item.STATES: {name: split(state, name) for name, state in states.items()},
            training_item.OTHER_RANKS: [
                {name: split(state, f"rank {rank}/{name}") for name, state in theirs.items()}
                for rank, theirs in enumerate(others, start=1)
            ],
            training_item.HISTORY: split(
                {"history": history.history, "epoch": history.epoch}, "history"
            ),
            training_item.LAYERS: split(self._state.layers.capture(), "layers"),
            training_item.LOGS: split(
                {"batch": plain_logs(logs.batch), "epoch": logs.epoch}, "logs"
            ),
            training_item.GOAL: self._goal and self._goal(),
            **self._made_of,
        }
        shown = plain_logs(logs.batch) if position.batch else logs.epoch or {}
        return Content(
            position.step,
            position.epoch,
            position.batch,
            {**arrays, training_item.CALLBACK_ARRAYS: kept},
            training,
            current().size,
            self._fingerprint,
            {name: float(value) for name, value in shown.items() if isinstance(value, int | float)},
        )

    def restore(self, checkpoint: RunCheckpoint) -> None:
        """Restore the run from a checkpoint; `check` it first."""
        replaced = self._state.restore(
            checkpoint.training[training_item.VARIABLES_STATE], checkpoint.arrays, checkpoint.layers
        )
        if replaced:
            log.info(
                f"layer {', '.join(replaced)}: going on with the vocabulary, or with what `adapt` "
                "learned, from the checkpoint and not from this script."
            )
        states = checkpoint.own_states(current().rank, current().size)
        for state in self._callbacks:
            if state.name in states:
                state.holder.set_state(states[state.name])
        # In place: a callback may hold the dict.
        history = self._model.history
        present = {"history": history.history, "epoch": history.epoch}
        Rebuilder().rebuild(snapshot(checkpoint.get(training_item.HISTORY)), present)
        set_random_state(states[training_item.RANDOM_GENERATORS])
        if current().step_payload is not None:
            current().step_payload.request(
                Request.STOP, states.get(training_item.STOP_REQUEST, False)
            )

    def _own_states(self, before: BeforeValidation | None) -> dict[str, Any]:
        """This rank's states of callbacks and random generators, by name."""
        earlier = {} if before is None else before.callbacks
        states = {
            state.name: earlier[state.name] if state.name in earlier else state.holder.get_state()
            for state in self._callbacks
            if current().is_chief or not state.is_shared
        }
        random = random_state() if before is None else before.random
        states[training_item.RANDOM_GENERATORS] = random
        if current().step_payload is not None:
            # Some callback has asked to stop, and the ranks will agree after the next step.
            states[training_item.STOP_REQUEST] = current().step_payload.is_requested(Request.STOP)
        return states


def _trainable(model: Any) -> dict[str, bool]:
    return {layer.path: layer.trainable for layer in layers_of(model)}


def config_of(model: Any) -> dict[str, Any] | None:
    """Return the config from which Keras can rebuild the model without its code, JSON-able.

    `None` if there is none: Keras needs `get_config` of a class that has arguments, and the source
    of every lambda.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About loading, which may never happen.
        try:
            config = keras.saving.serialize_keras_object(model)
            given = config.get("compile_config") or {}
            if "optimizer" in given:  # It may be a LossScaleOptimizer, which `compile` adds.
                given["optimizer"] = keras.saving.serialize_keras_object(model.optimizer)
            return json.loads(json.dumps(config))
        except (NotImplementedError, TypeError, ValueError, OSError):
            return None


def _differing(states: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Exchange states between ranks.

    Returns:
        This rank's own states, and for each rank but the chief those that differ from the chief's.
    """
    cluster = current()
    if cluster.size == 1:
        return states, []
    digests = {name: codec.digest(state) for name, state in states.items()}
    chief = cluster.collectives.broadcast(digests)
    mine = {name: state for name, state in states.items() if digests[name] != chief.get(name)}
    return states, cluster.collectives.allgather(mine)[1:]
