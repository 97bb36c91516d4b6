"""Every callback and Keras's own in the same training: users may see no difference.

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


KERAS_CLASSES = sorted(
    name
    for name in distrib.callbacks.__all__
    if hasattr(keras.callbacks, name)
    and getattr(distrib.callbacks, name) is not getattr(keras.callbacks, name)
)
# The only differences that are allowed: arguments that Keras does not have, and other defaults.
ADDED_ARGUMENTS = {
    "BackupAndRestore": [
        *("directory", "keep_last", "retention", "local_cache", "storage_options"),
        *("on_change", "initialize_from", "restore", "resume"),
    ],
    "CSVLogger": ["storage_options"],
    "ModelCheckpoint": ["storage_options"],
    "TensorBoard": ["storage_options"],
}
# `None` for `backup_dir`, because `directory` may be passed instead.
OTHER_DEFAULTS = {"BackupAndRestore": {"backup_dir": None, "delete_checkpoint": False}}


def test_all_are_compared() -> None:
    assert len(KERAS_CLASSES) >= 12
    assert set(ADDED_ARGUMENTS) | set(OTHER_DEFAULTS) <= set(KERAS_CLASSES)


@pytest.mark.parametrize("name", KERAS_CLASSES)
def test_arguments_are_those_of_keras_in_the_same_order(name: str) -> None:
    ours = inspect.signature(getattr(distrib.callbacks, name)).parameters
    theirs = inspect.signature(getattr(keras.callbacks, name)).parameters
    assert list(ours) == [*theirs, *ADDED_ARGUMENTS.get(name, [])]
    for argument, parameter in theirs.items():
        default = OTHER_DEFAULTS.get(name, {}).get(argument, parameter.default)
        assert (ours[argument].kind, ours[argument].default) == (parameter.kind, default), argument
    for argument in ADDED_ARGUMENTS.get(name, []):
        assert ours[argument].default is not inspect.Parameter.empty


@pytest.mark.parametrize("name", [name for name in KERAS_CLASSES if name != "BackupAndRestore"])
def test_class_is_a_subclass_of_keras_own(name: str) -> None:
    assert issubclass(getattr(distrib.callbacks, name), getattr(keras.callbacks, name))


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
