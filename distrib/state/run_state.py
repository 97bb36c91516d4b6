"""What a checkpoint of a run holds, and how a run becomes that again.

Gathered from several owners, each of which knows its own part: the variables (`TrainingState`),
every callback that has state, Keras's `History`, the random generators, the last `logs`, and a
description of the training data, whose position means nothing on other data.

Of callbacks and random generators the chief's states are kept, and those of other ranks where they
differ, which is rare. All ranks capture together, and each restores its own.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distrib.checkpoint import training_item
from distrib.checkpoint.layout import ArrayGroups
from distrib.checkpoint.saver import Content
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.cluster import current
from distrib.errors import CheckpointMismatchError
from distrib.gradients.step_payload import Request
from distrib.keras_compat.output import plain_logs
from distrib.state import codec
from distrib.state.training_state import (
    METRICS,
    OTHER,
    HostBuffers,
    Overrides,
    StatefulCallback,
    TrainingState,
    random_state,
    set_random_state,
)


@dataclass
class TrainingPosition:
    """Where a run stands, between two steps.

    Attributes:
        step: Batches trained since the run began.
        epoch: Epoch in progress, or to begin.
        batch: Batches of it that are done.
        train_done: Whether it needs no more batches, only validation and its end.
        stop: Whether a callback has asked to stop training.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    train_done: bool = False
    stop: bool = False


@dataclass
class Logs:
    """What Keras reported last.

    Attributes:
        batch: After a train batch; values may be tensors.
        epoch: After an epoch; `None` before the first has ended.
    """

    batch: Mapping[str, Any]
    epoch: dict[str, Any] | None


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory.

    Attributes:
        place: Path or URL that it was read from.
        training: The JSON item.
        arrays: By group and name.
    """

    place: str
    training: Mapping[str, Any]
    arrays: ArrayGroups

    @classmethod
    def load(cls, stored: StoredCheckpoint) -> Checkpoint:
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


@dataclass(frozen=True)
class BeforeValidation:
    """What validation changes, as it was before."""

    variables: Overrides
    callbacks: dict[str, dict[str, Any]]


class RunState:
    """All parts of one `fit`.

    Args:
        model: Compiled, with all its variables.
        data: Description of the training data; `None` if they cannot be resumed within an epoch.
    """

    def __init__(self, model: Any, data: Mapping[str, Any] | None) -> None:
        self._model = model
        self._data = data
        self._config = _config_of(model)
        self._state = TrainingState(model, metrics=data is not None)
        self._buffers = HostBuffers()
        self._fingerprint = _digest([self._state.describe(), data], "run")
        self._callbacks: Sequence[Any] = ()

    def add_callbacks(self, callbacks: Sequence[Any]) -> None:
        """Make the callbacks of the `fit` part of it."""
        self._callbacks = callbacks

    def check(self, checkpoint: Checkpoint) -> None:
        """Compare a checkpoint with the model and the data at hand.

        Raises:
            CheckpointMismatchError: Names the first differences. Nothing was changed.
        """
        _check_data(checkpoint.training[training_item.DATA], self._data)
        self._state.check(checkpoint.training[training_item.VARIABLES_STATE])

    def check_complete(self) -> None:
        """Check after a step that it created no variables; see `TrainingState`."""
        self._state.check_complete()

    def before_validation(self) -> BeforeValidation:
        """Copy what validation is about to change."""
        return BeforeValidation(
            self._state.copy((METRICS, OTHER)),
            {
                name: callback.get_state()
                for name, callback in self._stateful_callbacks()
                if _acts_in_validation(callback)
            },
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
            training_item.LOGS: split(
                {"batch": plain_logs(logs.batch), "epoch": logs.epoch}, "logs"
            ),
            training_item.VERSIONS: {"tensorflow": tf.__version__, "keras": keras.__version__},
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

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what the checkpoint was taken of; `check` it first."""
        self._state.restore(checkpoint.training[training_item.VARIABLES_STATE], checkpoint.arrays)
        states = checkpoint.own_states(current().rank, current().size)
        for name, callback in self._stateful_callbacks():
            if name in states:
                callback.set_state(states[name])
        history = checkpoint.get(training_item.HISTORY)
        self._model.history.history = history["history"]
        self._model.history.epoch = history["epoch"]
        set_random_state(states[training_item.RANDOM_GENERATORS])
        if current().step_payload is not None:
            current().step_payload.request(
                Request.STOP, states.get(training_item.STOP_REQUEST, False)
            )

    def _own_states(self, before: BeforeValidation | None) -> dict[str, Any]:
        """This rank's states of callbacks and random generators, by name."""
        earlier = {} if before is None else before.callbacks
        states = {
            name: earlier[name] if name in earlier else callback.get_state()
            for name, callback in self._stateful_callbacks()
        }
        states[training_item.RANDOM_GENERATORS] = random_state()
        if current().step_payload is not None:
            # Some callback has asked to stop, and the ranks will agree after the next step.
            states[training_item.STOP_REQUEST] = current().step_payload.is_requested(Request.STOP)
        return states

    def _stateful_callbacks(self) -> Iterator[tuple[str, StatefulCallback]]:
        """All callbacks that have state, each with a name that the same list always gives it."""
        count: dict[str, int] = {}
        for callback in self._callbacks:
            if isinstance(callback, StatefulCallback):
                kind = type(callback).__name__
                count[kind] = count.get(kind, 0) + 1
                yield (kind if count[kind] == 1 else f"{kind}-{count[kind]}"), callback


def _config_of(model: Any) -> dict[str, Any] | None:
    """Return what Keras can make the model of where nobody has its code, JSON-able.

    `None` if the model cannot tell: Keras asks for `get_config` of a class that has arguments, and
    for the source of every lambda.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are about loading, which nobody may ever do.
        try:
            config = keras.saving.serialize_keras_object(model)
            given = config.get("compile_config") or {}
            if "optimizer" in given:  # It may be scaling the loss, which `compile` adds by itself.
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
    digests = {name: _digest(state, name) for name, state in states.items()}
    chief = cluster.collectives.broadcast(digests)
    mine = {name: state for name, state in states.items() if digests[name] != chief.get(name)}
    return states, cluster.collectives.allgather(mine)[1:]


def _digest(state: Any, name: str) -> str:
    encoded, arrays = codec.encode(state, name)
    digest = hashlib.sha256(json.dumps(encoded).encode())
    for key, array in arrays.items():
        digest.update(key.encode() + array.tobytes())
    return digest.hexdigest()


def _acts_in_validation(callback: Any) -> bool:
    return any(
        getattr(type(callback), hook, None) is not getattr(keras.callbacks.Callback, hook)
        for hook in ("on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end")
    )


def _check_data(saved: Mapping[str, Any] | None, here: Mapping[str, Any] | None) -> None:
    """Refuse data other than those the checkpoint's position counts in."""
    if saved == here:
        return
    if saved is None or here is None:
        kind = {True: "data that is not a cluster.dataset", False: "a cluster.dataset"}
        changed = f"  checkpoint has {kind[saved is None]}, this run has {kind[here is None]}"
    else:
        changed = "\n".join(
            f"  {key}: checkpoint has {saved.get(key)}, this run has {here.get(key)}"
            for key in sorted({*saved, *here})
            if saved.get(key) != here.get(key)
        )
    raise CheckpointMismatchError(
        f"The checkpoint was written by a run on other training data:\n{changed}\n"
        "Nothing was changed. Pass the same data, or give this run its own `directory`."
    )
