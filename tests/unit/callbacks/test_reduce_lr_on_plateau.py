from __future__ import annotations

from typing import Any

import keras
import pytest
from driving import make_model

from distrib.callbacks import ReduceLROnPlateau

LOSSES = [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5]


def run(callback: Any, model: Any, losses: list[float], first: int = 0) -> list[float]:
    rates = []
    for epoch, loss in enumerate(losses, first):
        logs = {"val_loss": loss}
        callback.on_epoch_end(epoch, logs)
        rates.append(logs["learning_rate"])
    return rates


@pytest.mark.parametrize("interrupted_after", range(len(LOSSES)))
def test_rates_are_those_of_an_uninterrupted_run(
    interrupted_after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"patience": 1, "factor": 0.5, "cooldown": 3, "verbose": 1}
    whole, model = keras.callbacks.ReduceLROnPlateau(**arguments), make_model()
    whole.set_model(model)
    whole.on_train_begin()
    wanted = run(whole, model, LOSSES)
    printed = capsys.readouterr().out
    assert printed.count("reducing learning rate") == 3

    model = make_model()
    dead = ReduceLROnPlateau(**arguments)
    dead.set_model(model)
    dead.on_train_begin()
    rates = run(dead, model, LOSSES[:interrupted_after])
    ours = ReduceLROnPlateau(**arguments)
    ours.set_model(model)
    ours.on_train_begin()
    ours.set_state(dead.get_state())
    assert rates + run(ours, model, LOSSES[interrupted_after:], interrupted_after) == wanted
    assert capsys.readouterr().out == printed
    assert (ours.best, ours.wait, ours.cooldown_counter) == (
        whole.best,
        whole.wait,
        whole.cooldown_counter,
    )
