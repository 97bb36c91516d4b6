from __future__ import annotations

import math

import pytest
from driving import make_model

from distrib.callbacks import TerminateOnNaN


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_stops_and_says_so(loss: float, capsys: pytest.CaptureFixture[str]) -> None:
    callback, model = TerminateOnNaN(), make_model()
    callback.set_model(model)
    callback.set_state(callback.get_state())
    callback.on_batch_end(3, {"loss": 1.0})
    assert not model.stop_training
    callback.on_batch_end(4, {"loss": loss})
    assert model.stop_training
    assert capsys.readouterr().out == "Batch 4: Invalid loss, terminating training\n"


@pytest.mark.usefixtures("not_chief")
def test_all_processes_stop_and_the_chief_prints(capsys: pytest.CaptureFixture[str]) -> None:
    callback, model = TerminateOnNaN(), make_model()
    callback.set_model(model)
    callback.on_batch_end(0, {"loss": 1.0})
    callback.on_batch_end(1)
    assert not model.stop_training
    callback.on_batch_end(2, {"loss": math.nan})
    assert model.stop_training
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("not_chief")
def test_all_processes_raise() -> None:
    with pytest.raises(RuntimeError, match="NaN or Inf"):
        TerminateOnNaN(raise_error=True).on_batch_end(0, {"loss": math.nan})
