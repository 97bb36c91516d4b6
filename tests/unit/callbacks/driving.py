"""A tiny model, and a stand-in for `fit` that can be killed anywhere."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

Position = tuple[int, int]
EPOCHS, STEPS = 3, 2
# All moments at which a state is taken: (epochs done, batches of the next one done).
POSITIONS = [(e, b) for e in range(EPOCHS) for b in range(STEPS + 1)] + [(EPOCHS, 0)]


def make_model(**compile_arguments: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="out")], name="tiny")
    arguments = {"optimizer": keras.optimizers.SGD(0.05), "loss": "mse", "run_eagerly": True}
    model.compile(**(arguments | compile_arguments))
    return model


def make_data() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(16, 3)).astype("float32")
    return x, x.sum(axis=1, keepdims=True) + rng.normal(size=(16, 1)).astype("float32")


class Killed(BaseException):
    """The process of `drive` was killed."""


@dataclass
class Snapshot:
    """What a checkpoint holds, for callbacks that are driven by hand."""

    position: Position
    states: list[dict[str, Any]]
    rate: float
    frozen: bytes


def batch_logs(epoch: int, batch: int) -> dict[str, float]:
    return {"loss": 1.0 / (1 + epoch * STEPS + batch), "mae": 0.1 * epoch + batch}


def epoch_logs(epoch: int) -> dict[str, float]:
    return batch_logs(epoch, STEPS - 1) | {"val_loss": 2.0 / (1 + epoch), "val_mae": 0.3 * epoch}


def drive(
    callbacks: Sequence[keras.callbacks.Callback],
    model: Any = None,
    resume: Snapshot | None = None,
    snapshot_at: Position | None = None,
    kill_at: Position | None = None,
) -> Snapshot | None:
    """Call the callbacks as a `fit` with BackupAndRestore does, over made-up logs.

    Args:
        callbacks: Driven in this order.
        model: The model they see.
        resume: Where to continue from; None starts a fresh run.
        snapshot_at: Where to take a snapshot.
        kill_at: Where to stop as a killed process does. None runs to the end.

    Returns:
        The snapshot, if one was asked for.
    """
    model = model or make_model()
    listed = keras.callbacks.CallbackList(
        list(callbacks), model=model, epochs=EPOCHS, steps=STEPS, verbose=1
    )
    taken: list[Snapshot] = []

    def reached(*position: int) -> None:
        if position == snapshot_at:
            states = [callback.get_state() for callback in callbacks]
            rate = float(model.optimizer.learning_rate)
            taken.append(Snapshot(position, states, rate, pickle.dumps(states)))
        if position == kill_at:
            raise Killed

    def restore() -> None:
        assert resume is not None
        model.optimizer.learning_rate = resume.rate
        states = pickle.loads(resume.frozen)
        for callback, state in zip(callbacks, states, strict=True):
            callback.set_state(state)
            callback.set_state(state)  # It must not matter how often.

    first_epoch, first_batch = resume.position if resume else (0, 0)
    try:
        listed.on_train_begin()
        if resume:
            restore()
        else:
            reached(0, 0)
        for epoch in range(first_epoch, EPOCHS):
            listed.on_epoch_begin(epoch)
            start = first_batch if epoch == first_epoch else 0
            if start:
                restore()
            for batch in range(start, STEPS):
                listed.on_train_batch_begin(batch)
                listed.on_train_batch_end(batch, batch_logs(epoch, batch))
                reached(epoch, batch + 1)
            listed.on_test_begin()
            listed.on_test_batch_begin(0)
            listed.on_test_batch_end(0, {"loss": 1.0})
            listed.on_test_end({"loss": 2.0 / (1 + epoch)})
            listed.on_epoch_end(epoch, epoch_logs(epoch))
            reached(epoch + 1, 0)
        listed.on_train_end(epoch_logs(EPOCHS - 1))
    except Killed:
        pass
    for snapshot in taken:
        assert pickle.dumps(snapshot.states) == snapshot.frozen, "later training changed the state"
    return taken[0] if taken else None


def drive_through_kills(
    make: Callable[[], keras.callbacks.Callback],
    snapshot_at: Position,
    kill_at: Position,
    after_kill: Callable[[Any], None] = lambda callback: None,
) -> Any:
    """Run until killed, then again from the snapshot to the end; returns the last callback."""
    dead = make()
    snapshot = drive([dead], snapshot_at=snapshot_at, kill_at=kill_at)
    after_kill(dead)
    callback = make()
    drive([callback], resume=snapshot)
    return callback


def later_than(position: Position) -> list[Position]:
    return [other for other in POSITIONS if other >= position]
