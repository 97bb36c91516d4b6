"""Users' callbacks that know nothing of checkpoints, in a `fit` that is killed and resumed."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import distrib.callbacks
from distrib.callbacks import BackupAndRestore
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True) + RNG.normal(size=(20, 1)).astype("float32")


class Killed(BaseException):
    pass


class KillAt(keras.callbacks.Callback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations) == self.step:
            raise Killed


class MyStop(keras.callbacks.EarlyStopping):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.after_stop = {**getattr(self, "after_stop", {}), epoch: self.wait}


class OurStop(distrib.callbacks.EarlyStopping):
    def __init__(self) -> None:
        super().__init__("loss", patience=100)
        self.epochs: list[int] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.epochs.append(epoch)


class ReduceRate(keras.callbacks.Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        self.best, self.wait = np.inf, 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.wait = 0 if logs["val_loss"] < self.best else self.wait + 1
        self.best = min(self.best, logs["val_loss"])
        if self.wait == 1:
            self.model.optimizer.learning_rate = 0.5 * float(self.model.optimizer.learning_rate)


class BestMetric(keras.callbacks.Callback):
    """Keeps the best weights, a handle on the history, and counts in its class."""

    batches: list[int] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.batches.clear()
        self.best: Any = None
        self.seen = self.model.history.history
        self.begun = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begun += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append(batch)

    def on_test_end(self, logs: Any = None) -> None:
        if self.best is None or logs["loss"] < self.best[0]:
            self.best = logs["loss"], self.model.get_weights()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs_seen = len(self.seen.get("loss", []))


def train(directory: Path, kill: KillAt | None = None, rate: float = 0.2) -> Any:
    """All that a run ends with."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(rate), "mse")
    best, reduce = BestMetric(), ReduceRate()
    stop = MyStop(patience=3, restore_best_weights=True)
    ours, theirs = OurStop(), keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.9)
    history = model.fit(
        make_dataset((X, Y), 4, shuffle=True, seed=1),
        validation_data=(X[:8], Y[:8]),
        epochs=12,
        verbose=0,
        callbacks=[
            *(best, reduce, stop, ours, theirs, *([kill] if kill else [])),
            BackupAndRestore(directory, save_freq=2),
        ],
    ).history
    return {
        "history": history,
        "weights": [weight.tolist() for weight in model.get_weights()],
        "best": [best.best[0], *(weight.tolist() for weight in best.best[1])],
        "counts": [best.begun, best.epochs_seen, list(best.batches)],
        "stop": [stop.best, stop.best_epoch, stop.wait, stop.stopped_epoch, stop.after_stop],
        "reduce": [reduce.best, reduce.wait],
        "ours": [ours.best, ours.epochs],
    }


@pytest.mark.usefixtures("every_save_is_waited_for")
def test_they_end_as_if_undisturbed(tmp_path: Path) -> None:
    undisturbed = train(tmp_path / "undisturbed")
    assert 4 < len(undisturbed["history"]["loss"]) < 12
    for step in (8, 17):  # Within an epoch, and after one.
        with pytest.raises(Killed):
            train(tmp_path / "run", KillAt(step))
    assert train(tmp_path / "run") == undisturbed


def test_a_list_of_the_users_own_may_lack_a_history(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    given = keras.callbacks.CallbackList([BackupAndRestore(tmp_path)], model=model)
    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=given)
    assert len(history.history["loss"]) == 2


class Habit(keras.callbacks.Callback):
    """Fits its own model and this one, and stops by its count of epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs, self.results = 0, []  # type: ignore[var-annotated]

    def on_train_begin(self, logs: Any = None) -> None:
        self.other = keras.models.clone_model(self.model)
        self.other.compile("adam", "mse")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1
        if self.epochs == 3:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # A fit of the model itself takes back that it is to stop, as in plain Keras.
        for model in (self.other, self.model)[: 2 if epoch < 2 else 1]:
            self.results.append(model.fit(X[:8], Y[:8], verbose=0, shuffle=False).history)


def train_with_habits(directory: Path, *more: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    habit = Habit()
    saver = BackupAndRestore(directory, save_freq=2)
    data = make_dataset((X, Y), 4, shuffle=True, seed=1)
    history = model.fit(data, epochs=5, verbose=0, callbacks=[habit, *more, saver]).history
    return history, habit.results, [weight.tolist() for weight in model.get_weights()]


class KillInEpoch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.iterations > 9 and batch == 3:
            raise Killed


@pytest.mark.usefixtures("every_save_is_waited_for")
def test_fits_within_fit_and_stops_in_odd_places_end_the_same(tmp_path: Path) -> None:
    undisturbed = train_with_habits(tmp_path / "undisturbed")
    assert len(undisturbed[0]["loss"]) == 3
    with pytest.raises(Killed):
        train_with_habits(tmp_path / "run", KillInEpoch())
    assert train_with_habits(tmp_path / "run") == undisturbed


class CompilesAnew(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.compile("sgd", "mse")
            self.model.make_train_function(force=True)


class Freezes(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.layers[-1].trainable = False


def test_a_compile_within_fit_is_refused_and_a_frozen_layer_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"compiled .* anew within `fit`"):
        train_with_habits(tmp_path / "compiles", CompilesAnew())
    with pytest.warns(UserWarning, match=r"changed `trainable` of .*dense.* within `fit`"):
        train_with_habits(tmp_path / "freezes", Freezes())
