from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from driving import make_model

from distrib.callbacks import EarlyStopping

LOSSES = [1.0, 0.5, 0.7, 0.6, 0.8, 0.9]


def run(callback: Any, model: Any, losses: list[float], first: int = 0, state: Any = None) -> Any:
    """Hand the losses over epoch by epoch, with other weights in each; returns the last state."""
    callback.set_model(model)
    model.stop_training = False
    callback.on_train_begin()
    if state is not None:
        callback.set_state(state)
    for epoch, loss in enumerate(losses, first):
        model.set_weights([np.full_like(w, epoch) for w in model.get_weights()])
        callback.on_epoch_end(epoch, {"val_loss": loss})
        if model.stop_training:
            break
    return callback.get_state() if isinstance(callback, EarlyStopping) else None


@pytest.mark.parametrize("interrupted_after", range(1, 5))
def test_patience_and_best_weights_survive(
    interrupted_after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: dict[str, Any] = {"patience": 3, "restore_best_weights": True, "verbose": 1}
    whole, model = keras.callbacks.EarlyStopping(**arguments), make_model()
    run(whole, model, LOSSES)
    whole.on_train_end()
    wanted = capsys.readouterr().out

    state = run(EarlyStopping(**arguments), make_model(), LOSSES[:interrupted_after])
    ours, other = EarlyStopping(**arguments), make_model()
    run(ours, other, LOSSES[interrupted_after:], interrupted_after, state)
    ours.on_train_end()
    assert capsys.readouterr().out == wanted
    assert "Epoch 5: early stopping" in wanted
    for name in ("wait", "stopped_epoch", "best", "best_epoch"):
        assert getattr(ours, name) == getattr(whole, name)
    for ours_weight, weight in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours_weight, weight)
        assert np.all(weight == 1.0)


def test_restart_after_stopping_restores_the_best_weights() -> None:
    state = run(EarlyStopping(patience=2, restore_best_weights=True), make_model(), LOSSES)
    again, model = EarlyStopping(patience=2, restore_best_weights=True), make_model()
    run(again, model, [], state=state)
    again.on_train_end()
    assert all(np.all(weight == 1.0) for weight in model.get_weights())


def test_state_is_not_changed_by_later_training() -> None:
    callback, model = EarlyStopping(patience=9, restore_best_weights=True), make_model()
    state = run(callback, model, LOSSES[:2])
    weights = [weight.copy() for weight in state["best_weights"]]
    run(callback, model, [0.1, 0.01], 2, state)
    assert state["best"] == 0.5
    for kept, weight in zip(state["best_weights"], weights, strict=True):
        np.testing.assert_array_equal(kept, weight)


def test_values_given_by_hand_become_arrays() -> None:
    callback = EarlyStopping(monitor="loss")
    callback.set_model(make_model())
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": keras.ops.convert_to_tensor(0.1)})
    state = callback.get_state()
    assert isinstance(state["best"], np.ndarray)
    assert state["best"].dtype == np.float32
    callback.set_state(state)
    callback.on_epoch_end(1, {"loss": np.float32(0.1)})
    assert callback.wait == 1


def test_best_weights_that_were_not_kept_are_warned_of() -> None:
    state = run(EarlyStopping(patience=3), make_model(), LOSSES[:2])
    with pytest.warns(UserWarning, match=r"weights of epoch 2, the best so far, were not kept"):
        run(EarlyStopping(patience=3, restore_best_weights=True), make_model(), [], 2, state)
