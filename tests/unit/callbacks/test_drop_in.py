"""Every callback beside Keras's own in the same training: nothing that a user sees may differ.

Keras's own tests, run against ours in `tests/integration/test_keras_own_tests.py`, go further.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from driving import make_data, make_model

import distrib.callbacks

Make = Callable[[Any], list[Any]]


def schedule(epoch: int, rate: float) -> float:
    return rate * 0.5


CASES: dict[str, Make] = {
    "EarlyStopping": lambda c: [
        c.EarlyStopping("loss", min_delta=0.5, patience=1, verbose=1, restore_best_weights=True)
    ],
    "ReduceLROnPlateau": lambda c: [
        c.ReduceLROnPlateau("loss", min_delta=0.5, patience=1, verbose=1)
    ],
    "LearningRateScheduler": lambda c: [c.LearningRateScheduler(schedule, verbose=1)],
    "TerminateOnNaN": lambda c: [
        c.LambdaCallback(on_epoch_begin=lambda epoch, logs: None),
        c.TerminateOnNaN(),
    ],
    "CSVLogger": lambda c: [c.CSVLogger("log.csv"), c.CSVLogger("more.csv", append=True)],
    "ModelCheckpoint": lambda c: [
        c.ModelCheckpoint("{epoch:02d}-{val_loss:.3f}.keras", verbose=1),
        c.ModelCheckpoint("sub/best.keras", verbose=1, save_best_only=True),
        c.ModelCheckpoint("{epoch}.weights.h5", save_weights_only=True, save_freq=3, verbose=1),
    ],
    "SwapEMAWeights": lambda c: [c.SwapEMAWeights(swap_on_epoch=True)],
}
ADDED = {"BackupAndRestore", "LearningRateWarmup", "LossHistory"}


def files(folder: Path) -> dict[str, bytes | None]:
    """List the files; with their bytes where these do not depend on the time of day."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.suffix == ".csv" else None
        for path in folder.rglob("*")
    }


def train(callbacks: Any, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder.mkdir()
    monkeypatch.chdir(folder)
    model = make_model(optimizer=keras.optimizers.SGD(0.05, use_ema=True))
    x, y = make_data()
    return model.fit(
        x,
        y,
        batch_size=8,
        epochs=4,
        shuffle=False,
        validation_data=(x, y),
        callbacks=make(callbacks),
        verbose=0,
    )


@pytest.mark.parametrize("name", CASES)
def test_same_training_messages_and_files(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = train(keras.callbacks, CASES[name], tmp_path / "keras", monkeypatch)
    printed = capsys.readouterr().out
    ours = train(distrib.callbacks, CASES[name], tmp_path / "ours", monkeypatch)
    assert capsys.readouterr().out == printed
    assert files(tmp_path / "ours") == files(tmp_path / "keras")
    assert ours.epoch == theirs.epoch
    assert ours.history.keys() == theirs.history.keys()
    # Keras's swap rounds.
    tolerance = 1e-5 if name == "SwapEMAWeights" else 0
    for key, values in theirs.history.items():
        np.testing.assert_allclose(ours.history[key], values, rtol=tolerance)
    for weight, other in zip(ours.model.get_weights(), theirs.model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, rtol=tolerance)


@pytest.mark.parametrize("name", sorted(set(distrib.callbacks.__all__) - ADDED))
def test_same_arguments_and_defaults(name: str) -> None:
    ours, theirs = getattr(distrib.callbacks, name), getattr(keras.callbacks, name)
    assert issubclass(ours, theirs)

    def arguments(kind: Any) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(kind).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    # What Keras does not have comes last.
    added = [argument for argument in arguments(ours) if argument[0] == "storage_options"]
    assert arguments(ours) == arguments(theirs) + added
    assert bool(added) == (name in {"CSVLogger", "ModelCheckpoint", "TensorBoard"})


@pytest.mark.usefixtures("not_chief")
@pytest.mark.parametrize("name", CASES)
def test_other_processes_decide_alike_and_write_nothing(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = train(keras.callbacks, CASES[name], tmp_path / "keras", monkeypatch)
    capsys.readouterr()
    ours = train(distrib.callbacks, CASES[name], tmp_path / "ours", monkeypatch)
    assert ours.epoch == theirs.epoch
    assert ours.history.keys() == theirs.history.keys()
    assert list((tmp_path / "ours").iterdir()) == []
    assert capsys.readouterr().out == ""
