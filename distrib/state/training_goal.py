"""How far a `fit` is meant to train: to a number of epochs, unless a callback stops it before.

A run that has reached its goal stays finished when the same script is started again. It goes on if
the goal is farther than the one it has reached: more epochs, or no longer the callback that stopped
it, or that callback with other arguments. What is left of the run is then trained as if it had had
the new arguments from the start; only a patience that is exhausted all the same begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np

from distrib.state.description import constructor_arguments

# Those of Keras's callbacks that stop training. One of the user's own may as well.
_STOPPING = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.TerminateOnNaN,
    keras.callbacks.LambdaCallback,
)
_LIBRARIES = ("keras.", "distrib.callbacks")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class StoppingCallback:
    """A callback that may stop training.

    Attributes:
        name: Of its class.
        arguments: Those of its constructor that are plain values and that it keeps as attributes.
        stopped: Whether it is known to have stopped the run.
    """

    name: str
    arguments: Mapping[str, Any]
    stopped: bool = False


@dataclass(frozen=True)
class TrainingGoal:
    """How far a `fit` is meant to train.

    Attributes:
        epochs: As given to `fit`.
        stopping: The callbacks that may stop it before.
    """

    epochs: int
    stopping: tuple[StoppingCallback, ...]

    @classmethod
    def of(cls, epochs: int, callbacks: Iterable[Any]) -> TrainingGoal:
        """Return the goal of a `fit` with these callbacks."""
        return cls(epochs, tuple(_describe(each) for each in callbacks if _may_stop(each)))

    @classmethod
    def decode(cls, encoded: Mapping[str, Any]) -> TrainingGoal:
        """Return a goal from what `encode` returned."""
        stopping = tuple(StoppingCallback(**each) for each in encoded["stopping"])
        return cls(encoded["epochs"], stopping)

    def encode(self, callbacks: Iterable[Any]) -> dict[str, Any]:
        """Return the goal as JSON values, with which callbacks have stopped the run.

        Args:
            callbacks: Those that the goal was made of, at work since.
        """
        stopped = (getattr(each, "stopped_epoch", 0) > 0 for each in callbacks if _may_stop(each))
        pairs = zip(self.stopping, stopped, strict=False)
        return asdict(replace(self, stopping=tuple(replace(a, stopped=b) for a, b in pairs)))

    def why_farther(self, reached: TrainingGoal) -> str | None:
        """Say why a run that was stopped on the way to another goal goes on to this one.

        Args:
            reached: The goal of the run when it was stopped.

        Returns:
            `None` if it does not go on.
        """
        if self.epochs > reached.epochs:
            return f"`epochs` is {self.epochs} instead of {reached.epochs}"
        return next(self._changes(reached), None)

    def is_same(self, other: TrainingGoal) -> bool:
        """Tell whether two `fit`s have the same goal."""
        return self.epochs == other.epochs and _plain(self.stopping) == _plain(other.stopping)

    def _changes(self, reached: TrainingGoal) -> Iterator[str]:
        here = list(self.stopping)
        for old in reached.causes:
            new = next((each for each in here if each.name == old.name), None)
            if new is None:
                yield f"{old.name} is no longer among the callbacks"
                continue
            here.remove(new)
            changed = {
                name: value
                for name, value in new.arguments.items()
                if name in old.arguments and value != old.arguments[name]
            }
            # With less patience it would have stopped before.
            if set(changed) == {"patience"} and changed["patience"] < old.arguments["patience"]:
                continue
            for name, value in changed.items():
                yield f"{old.name} has `{name}={value!r}` instead of {old.arguments[name]!r}"

    @property
    def causes(self) -> tuple[StoppingCallback, ...]:
        """The callbacks that have stopped the run, or all that may have."""
        return tuple(each for each in self.stopping if each.stopped) or self.stopping


def renew_patience(callbacks: Iterable[Any]) -> None:
    """Let callbacks that have stopped a run forget it, so that the run can go on."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.EarlyStopping):
            callback.stopped_epoch = 0
            if callback.wait >= callback.patience:
                callback.wait = 0


def _may_stop(callback: Any) -> bool:
    kinds = type(callback).__mro__
    known = next((kind for kind in kinds if kind.__module__.startswith(_LIBRARIES)), object)
    return issubclass(known, _STOPPING) or known in (keras.callbacks.Callback, object)


def _describe(callback: Any) -> StoppingCallback:
    names = {*constructor_arguments(type(callback))} - {"self", "verbose"}
    kept = {name: vars(callback).get(name) for name in sorted(names)}
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in kept.items()
    }
    arguments = {name: value for name, value in plain.items() if isinstance(value, _PLAIN)}
    if isinstance(callback, keras.callbacks.EarlyStopping):
        arguments["min_delta"] = abs(callback.min_delta)  # Keras changes its sign in training.
    return StoppingCallback(type(callback).__name__, arguments)


def _plain(stopping: Iterable[StoppingCallback]) -> list[Any]:
    return [(each.name, dict(each.arguments)) for each in stopping]
