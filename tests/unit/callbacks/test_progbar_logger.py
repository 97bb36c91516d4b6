from __future__ import annotations

import re
from typing import Any

import keras
import pytest
from driving import make_data, make_model

from distrib.callbacks import ProgbarLogger


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.time", lambda: self.now)


def train(bar: Any, clock: Clock, first: int, steps: int = 1000, done: int = 10) -> None:
    """Do batches `first` to `first + done - 1` of an epoch, two seconds each."""
    bar.set_params({"verbose": 1, "epochs": 3, "steps": steps})
    bar.on_train_begin()
    bar.on_epoch_begin(1)
    for batch in range(first, first + done):
        bar.on_train_batch_begin(batch)
        clock.now += 2.0
        bar.on_train_batch_end(batch, {"loss": 0.25})


def plain(text: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", text)


def test_fresh_epoch_shows_what_keras_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, shown = Clock(monkeypatch), []
    for kind in (keras.callbacks.ProgbarLogger, ProgbarLogger):
        bar = kind()
        train(bar, clock, first=0, steps=10)
        bar.on_epoch_end(1, {"loss": 0.25, "val_loss": 0.5})
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "Epoch 2/3" in shown[0]


def test_resumed_epoch_goes_on_and_estimates_by_its_own_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ProgbarLogger()
    train(bar, Clock(monkeypatch), first=900)
    last = plain(capsys.readouterr().out).split("\r")[-1]
    assert "910/1000" in last
    assert "2s/step" in last
    assert " 3:00 " in last  # 90 steps are left.


def test_resumed_epoch_ends_with_its_own_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ProgbarLogger()
    train(bar, Clock(monkeypatch), first=990)
    bar.on_epoch_end(1, {"loss": 0.25})
    last = plain(capsys.readouterr().out).split("\r")[-1]
    assert "1000/1000" in last
    assert "20s 2s/step" in last


def test_next_epoch_counts_from_its_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, bar = Clock(monkeypatch), ProgbarLogger()
    train(bar, clock, first=900)
    train(bar, clock, first=0)
    last = plain(capsys.readouterr().out).split("\r")[-1]
    assert "2s/step" in last


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_real_fit_shows_the_same_lines(verbose: int, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for kind in (keras.callbacks.ProgbarLogger, ProgbarLogger):
        x, y = make_data()
        model = make_model()
        model.fit(x, y, epochs=2, validation_data=(x, y), callbacks=[kind()], verbose=verbose)
        model.evaluate(x, y, callbacks=[kind()], verbose=verbose)
        model.predict(x, callbacks=[kind()], verbose=verbose)
        text = plain(capsys.readouterr().out)
        # What is left is independent of time, and of how often the bar was drawn.
        lines = re.sub(r"\d+(us|ms|s)(/step)?", "T", text).split("\n")
        shown.append([line.split("\r")[-1].rstrip().replace("T T", "T") for line in lines])
    assert shown[0] == shown[1]


@pytest.mark.usefixtures("not_chief")
def test_only_the_chief_shows(capsys: pytest.CaptureFixture[str]) -> None:
    make_model().fit(*make_data(), epochs=2, callbacks=[ProgbarLogger()], verbose=1)
    assert capsys.readouterr().out == ""
