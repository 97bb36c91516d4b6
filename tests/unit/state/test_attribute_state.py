import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.state.attribute_state import AttributeState


class Counts(keras.callbacks.Callback):
    in_class: list[int] = []
    limit = 3

    def __init__(self, patience: int = 2, losses: list[float] | None = None) -> None:
        super().__init__()
        self.patience = patience
        self.losses = [] if losses is None else losses
        self.best: float | None = None
        self.fresh = False
        self.lock = threading.Lock()
        self.rates: Any = None
        self.weights = np.zeros(3)
        type(self).in_class.clear()

    def train(self) -> None:
        self.best = 0.5
        self.losses.append(0.5)
        self.in_class.append(7)
        self.lazily = {"epoch": 3}
        self.weights[1] = 5


def test_what_training_changes_is_restored_and_the_rest_is_the_scripts() -> None:
    old = Counts(patience=2)
    state = AttributeState(old, "Counts")
    old.train()
    saved = state.get_state()
    assert set(saved["changed"]) == {"best", "losses", "lazily", "weights", "Counts.in_class"}
    assert saved["not saved"] == []
    old.weights[1] = 6  # What was returned does not change.

    losses: list[float] = []
    new = Counts(patience=9, losses=losses)
    AttributeState(new, "Counts").set_state(saved)
    assert (new.best, new.lazily, new.patience) == (0.5, {"epoch": 3}, 9)
    assert new.losses is losses
    assert losses == [0.5]
    assert new.in_class == Counts.in_class == [7]
    np.testing.assert_array_equal(new.weights, [0, 5, 0])


def test_restoring_undoes_what_a_second_beginning_of_the_epoch_does() -> None:
    saved = AttributeState(Counts(), "Counts").get_state()
    new = Counts()
    state = AttributeState(new, "Counts")
    new.train()
    new.fresh = True
    lock = new.lock = threading.Lock()
    state.set_state(saved)
    assert (new.fresh, new.best, new.losses, new.in_class) == (False, None, [], [])
    assert not hasattr(new, "lazily")
    assert new.lock is lock
    np.testing.assert_array_equal(new.weights, [0, 0, 0])


def test_what_cannot_be_saved_is_named_once_if_it_changes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    callback = Counts()
    state = AttributeState(callback, "Counts-2")
    assert state.get_state() == {"changed": {}, "not saved": []}
    callback.lock = threading.Lock()
    saved = [state.get_state() for _ in range(2)][-1]
    assert saved["not saved"] == ["lock"]
    assert capsys.readouterr().err.count("distrib: Counts-2: lock cannot be saved") == 1
    AttributeState(Counts(), "Counts").set_state(saved)
    assert "distrib: Counts: lock cannot be saved" in capsys.readouterr().err


def test_an_iterator_is_named_because_it_advances_unseen() -> None:
    callback = Counts()
    callback.rates = iter([0.1, 0.2])
    assert AttributeState(callback, "Counts").get_state()["not saved"] == ["rates"]


def test_a_lambdas_variables_are_named_if_they_change() -> None:
    losses: list[float] = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(1.0))
    state = AttributeState(callback, "LambdaCallback")
    assert state.get_state()["not saved"] == []
    callback.on_epoch_end(0, {})
    assert state.get_state() == {"changed": {}, "not saved": ["on_epoch_end(losses)"]}


def test_the_models_variables_are_left_to_the_model() -> None:
    rate = tf.Variable(0.1)
    callback = Counts()
    callback.rate, callback.own = rate, tf.Variable(0.0)  # type: ignore[attr-defined]
    state = AttributeState(callback, "Counts", ignored={"best"}, saved_elsewhere={id(rate)})
    callback.train()
    rate.assign(0.2)
    assert "best" not in (changed := state.get_state()["changed"])
    assert not {"rate", "own"} & changed.keys()
    callback.own.assign(1.0)  # type: ignore[attr-defined]
    assert "own" in state.get_state()["changed"]


def test_a_large_array_is_copied_when_it_changes() -> None:
    callback = Counts()
    callback.weights = np.zeros(2**18)
    state = AttributeState(callback, "Counts")
    assert state.get_state()["changed"] == {}
    callback.weights[5] = 1
    first = state.get_state()["changed"]["weights"]
    assert state.get_state()["changed"]["weights"] is first
    callback.weights[5] = 2
    assert (first[5], state.get_state()["changed"]["weights"][5]) == (1, 2)


def test_what_cannot_be_made_again_is_named() -> None:
    callback = Counts()
    state = AttributeState(callback, "Counts")
    callback.counter = tf.Variable(3)  # type: ignore[attr-defined]
    saved = state.get_state()
    with pytest.warns(UserWarning, match=r"Counts\.counter could not be restored: the variable"):
        AttributeState(Counts(), "Counts").set_state(saved)


class Odd(keras.callbacks.Callback):
    __slots__ = ("slot",)

    def __init__(self) -> None:
        super().__init__()
        self.slot = self.__private = 1

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value + 100 if name == "slot" else value)

    def show(self) -> tuple[int, int]:
        return self.slot, self.__private

    def train(self) -> None:
        self.slot = 2
        self.__private = 3


def test_slots_private_names_and_a_setattr_of_the_callbacks_own() -> None:
    old, new = Odd(), Odd()
    state = AttributeState(old, "Odd")
    old.train()
    AttributeState(new, "Odd").set_state(state.get_state())
    assert new.show() == old.show() == (102, 3)
