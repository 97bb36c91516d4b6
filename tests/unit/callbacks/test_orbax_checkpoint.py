from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from driving import (
    Position,
    drive,
    drive_through_kills,
    later_than,
    make_data,
    make_model,
)

import distrib.callbacks
from distrib.errors import ConfigurationError

if not hasattr(keras.callbacks, "OrbaxCheckpoint"):
    pytest.skip("this Keras has no OrbaxCheckpoint", allow_module_level=True)

OrbaxCheckpoint: Any = distrib.callbacks.OrbaxCheckpoint


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def best_by_batches(folder: Path) -> Any:
    return OrbaxCheckpoint(
        folder, monitor="loss", save_best_only=True, save_freq=1, max_to_keep=None
    )


def test_steps_are_those_of_keras(tmp_path: Path) -> None:
    for kind, name in ((keras.callbacks.OrbaxCheckpoint, "keras"), (OrbaxCheckpoint, "ours")):
        drive([kind(str(tmp_path / name), max_to_keep=2)])
    assert steps(tmp_path / "ours") == steps(tmp_path / "keras") == ["1", "2"]


def test_directory_can_be_loaded_by_keras(tmp_path: Path) -> None:
    model = make_model()
    model.fit(*make_data(), epochs=2, callbacks=[OrbaxCheckpoint(tmp_path / "run")], verbose=0)
    again = make_model()
    again.load_weights(str(tmp_path / "run"))
    for loaded, weight in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, weight)


@pytest.mark.parametrize("snapshot_at", [(0, 0), (1, 1), (2, 0)])
@pytest.mark.parametrize("save_freq", ["epoch", 1])
@pytest.mark.parametrize("max_to_keep", [1, None])
def test_same_steps_after_a_kill(
    tmp_path: Path, snapshot_at: Position, save_freq: Any, max_to_keep: int | None
) -> None:
    def make(name: str) -> Any:
        return OrbaxCheckpoint(tmp_path / name, save_freq=save_freq, max_to_keep=max_to_keep)

    whole = make("whole")
    drive([whole])
    kill_at = later_than(snapshot_at)[-1]
    ours = drive_through_kills(
        lambda: make("ours"), snapshot_at, kill_at, lambda dead: dead.wait_until_finished()
    )
    assert steps(tmp_path / "ours") == steps(tmp_path / "whole") != []
    for name in OrbaxCheckpoint._state_attributes:
        assert getattr(ours, name) == getattr(whole, name)


def test_keras_fails_at_a_step_that_a_killed_process_saved(tmp_path: Path) -> None:
    """When Keras mends it, `OrbaxCheckpoint.set_state` need not remove steps any more."""
    for attempt in (1, 2):
        saver = keras.callbacks.OrbaxCheckpoint(str(tmp_path / "run"), max_to_keep=None)
        if attempt == 1:
            drive([saver])
        else:
            with pytest.raises(FileExistsError, match="already exists"):
                drive([saver])


def test_best_by_batches_in_the_first_epoch(tmp_path: Path) -> None:
    saver = best_by_batches(tmp_path / "run")
    drive([saver])
    assert saver.best == pytest.approx(1 / 6)
    assert steps(tmp_path / "run") == ["1", "2", "3", "4", "5", "6"]


def test_keras_fails_at_best_by_batches_in_the_first_epoch(tmp_path: Path) -> None:
    """When Keras mends it, `OrbaxCheckpoint` needs no `_set_monitor_op` any more."""
    saver = keras.callbacks.OrbaxCheckpoint(
        str(tmp_path / "run"), monitor="loss", save_best_only=True, save_freq=1
    )
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        drive([saver])


def test_failed_save_is_raised_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = OrbaxCheckpoint(tmp_path / "run")
    monkeypatch.setattr(saver, "wait_until_finished", _fails)
    with pytest.raises(OSError, match="No space left"):
        saver.on_train_end()


def _fails() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("url", ["s3://bucket/run", "memory://run"])
def test_stores_that_orbax_does_not_know_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"local disk and to gs:// only. Use BackupAnd"):
        OrbaxCheckpoint(url)


def test_unwritable_folder_is_refused_when_training_begins(tmp_path: Path) -> None:
    saver = OrbaxCheckpoint(tmp_path / "run")
    (tmp_path / "run").rmdir()
    (tmp_path / "run").touch()
    with pytest.raises(ConfigurationError, match="`directory`: cannot write"):
        saver.on_train_begin()


@pytest.mark.usefixtures("not_chief")
def test_all_decide_and_the_chief_writes(tmp_path: Path) -> None:
    saver = best_by_batches(tmp_path / "run")
    drive_through_kills(lambda: best_by_batches(tmp_path / "run"), (1, 1), (2, 0))
    drive([saver])
    assert saver.best == pytest.approx(1 / 6)
    assert list(tmp_path.iterdir()) == []
    assert list(saver.checkpointer.directory.iterdir()) == []


def test_keras_still_loads_models_untrained(tmp_path: Path) -> None:
    """Fails when Keras mends it: then take the warning out of the docstring."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    saver = keras.callbacks.OrbaxCheckpoint(str(tmp_path))
    model.fit(np.ones((8, 3)), np.ones(8), verbose=0, callbacks=[saver])
    loaded = keras.models.load_model(tmp_path)
    assert not np.array_equal(loaded.weights[0], model.weights[0])
