from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from driving import (
    POSITIONS,
    STEPS,
    Position,
    drive,
    drive_through_kills,
    later_than,
    make_data,
    make_model,
)

from distrib.callbacks import ModelCheckpoint
from distrib.errors import ConfigurationError
from distrib.storage.uploads import UploadError, uploads


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("save_freq", ["epoch", 3])
@pytest.mark.parametrize("snapshot_at", POSITIONS)
def test_same_files_after_a_kill_anywhere(
    tmp_path: Path, snapshot_at: Position, save_freq: Any
) -> None:
    def make(folder: str, kind: Any = ModelCheckpoint) -> Any:
        name = "{epoch}.weights.h5" if save_freq == "epoch" else "{epoch}-{batch}.weights.h5"
        return kind(str(tmp_path / folder / name), save_weights_only=True, save_freq=save_freq)

    whole = make("whole", keras.callbacks.ModelCheckpoint)
    drive([whole])
    kill_at = later_than(snapshot_at)[-1]
    ours = drive_through_kills(lambda: make("ours"), snapshot_at, kill_at)
    assert names(tmp_path / "ours") == names(tmp_path / "whole") != []
    for name in ("best", "_batches_seen_since_last_saving", "_last_batch_seen"):
        assert getattr(ours, name) == getattr(whole, name)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_file_is_that_of_keras(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for kind in (keras.callbacks.ModelCheckpoint, ModelCheckpoint):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        model = make_model()
        saver = kind(
            str(path),
            save_weights_only="weights" in name,
            save_best_only=True,
            monitor="loss",
            verbose=1,
        )
        model.fit(*make_data(), epochs=2, callbacks=[saver], verbose=0)
        again = make_model()
        again.set_weights([np.zeros_like(w) for w in again.get_weights()])
        if "weights" in name:
            again.load_weights(path)
        else:
            again = keras.models.load_model(path, compile=False)
        for loaded, weight in zip(again.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(loaded, weight)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "finished saving model to" in printed[0]


def test_failure_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.keras"
    saver, model = ModelCheckpoint(path), make_model()
    model.fit(*make_data(), callbacks=[saver], verbose=0)
    before = path.read_bytes()

    def save(target: str, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model, "save", save)
    with pytest.raises(OSError, match="No space left"):
        model.fit(*make_data(), callbacks=[saver], verbose=0)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["m.keras"]


def test_what_killed_attempts_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".tmp-{os.getpid()}-0123abcd-m.keras"
    left.touch()
    ModelCheckpoint(tmp_path / "m.keras").on_train_begin()
    assert not left.exists()


def test_best_by_batches_in_the_first_epoch(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "m.keras", monitor="loss", save_best_only=True, save_freq=1)
    drive([saver])
    assert saver.best == pytest.approx(1 / 6)


def test_keras_fails_at_best_by_batches_in_the_first_epoch(tmp_path: Path) -> None:
    """When Keras mends it, `ModelCheckpoint._save_model` needs no `_set_monitor_op` any more."""
    saver = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "m.keras"), monitor="loss", save_best_only=True, save_freq=1
    )
    assert STEPS > 1
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        drive([saver])


def test_directory_is_refused_as_by_keras(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.mkdir()
    messages = []
    for kind in (keras.callbacks.ModelCheckpoint, ModelCheckpoint):
        with pytest.raises(IOError, match="existing directory") as caught:
            drive([kind(str(path))])
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_missing_placeholder_is_named_as_by_keras(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="Failed to format this callback filepath"):
        drive([ModelCheckpoint(tmp_path / "{accuracy}.keras")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filepath": "m.txt"}, "must end in `.keras`"),
        ({"filepath": "m.h5", "save_weights_only": True}, "must end in `.weights.h5`"),
        ({"filepath": "m.keras", "save_freq": "step"}, "Unrecognized save_freq"),
    ],
)
def test_bad_arguments_are_refused_as_by_keras(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelCheckpoint(**arguments)


@pytest.mark.parametrize("snapshot_at", [(0, 0), (1, 1), (2, 0)])
def test_same_remote_files_after_a_kill(remote: Any, snapshot_at: Position) -> None:
    def make(kind: str) -> ModelCheckpoint:
        url = f"{remote.url}/{kind}/{{epoch:02d}}-{{val_loss:.2f}}.weights.h5"
        return ModelCheckpoint(url, save_weights_only=True, storage_options=remote.options)

    drive([make("whole")])
    drive_through_kills(lambda: make("ours"), snapshot_at, later_than(snapshot_at)[-1])
    assert (remote.location() / "whole").names() == [
        "01-2.00.weights.h5",
        "02-1.00.weights.h5",
        "03-0.67.weights.h5",
    ]
    assert (remote.location() / "ours").names() == (remote.location() / "whole").names()


def test_remote_file_can_be_loaded(remote: Any, tmp_path: Path) -> None:
    model = make_model()
    url = f"{remote.url}/best.keras"
    saver = ModelCheckpoint(
        url, monitor="loss", save_best_only=True, storage_options=remote.options
    )
    model.fit(*make_data(), epochs=2, callbacks=[saver], verbose=0)
    assert list(remote.contents()) == ["best.keras"]
    (tmp_path / "best.keras").write_bytes(remote.contents()["best.keras"])
    again = keras.models.load_model(tmp_path / "best.keras", compile=False)
    for loaded, weight in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, weight)


def test_checkpoint_waits_for_the_file_that_it_knows_of(memory_folder: Any) -> None:
    saver = ModelCheckpoint(f"{memory_folder.url}/m.weights.h5", save_weights_only=True)
    drive([saver], snapshot_at=(1, 0), kill_at=(1, 0))
    uploads.pending().wait()
    assert list(memory_folder.contents()) == ["m.weights.h5"]


def test_placeholders_may_be_in_the_folder(remote: Any) -> None:
    url = f"{remote.url}/{{epoch}}/m.weights.h5"
    drive([ModelCheckpoint(url, save_weights_only=True, storage_options=remote.options)])
    assert sorted(remote.contents()) == [f"{epoch}/m.weights.h5" for epoch in (1, 2, 3)]


def test_unwritable_folder_is_refused_when_training_begins(s3_server: Any) -> None:
    for folder in ("no-such-bucket", "no-such-bucket/{epoch}", "{epoch}"):
        saver = ModelCheckpoint(f"s3://{folder}/m.keras", storage_options=s3_server.options)
        bucket = folder.split("/")[0]
        with pytest.raises(ConfigurationError, match=f"`filepath`: cannot write to s3://{bucket}:"):
            saver.on_train_begin()


@pytest.mark.usefixtures("failed_upload")
def test_failed_upload_is_raised_by_the_next_hook(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match=r"some.png: access is denied \(not you\)"):
        ModelCheckpoint(tmp_path / "m.keras").on_train_batch_end(0)


@pytest.mark.usefixtures("no_uploads")
def test_failed_upload_is_raised_at_the_end_at_the_latest(memory_folder: Any) -> None:
    with pytest.raises(UploadError, match=r"m.keras: access is denied \(not you\)"):
        drive([ModelCheckpoint(f"{memory_folder.url}/m.keras", save_freq=6)])


@pytest.mark.usefixtures("not_chief")
def test_the_chief_alone_writes_remotely(remote: Any) -> None:
    drive([ModelCheckpoint(f"{remote.url}/m.keras", storage_options=remote.options)])
    assert remote.contents() == {}


@pytest.mark.usefixtures("not_chief")
def test_all_decide_and_the_chief_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = ModelCheckpoint(tmp_path / "m.keras", monitor="loss", save_best_only=True, verbose=1)
    drive([saver])
    assert saver.best == pytest.approx(1 / 6)
    assert names(tmp_path) == []
    assert capsys.readouterr().out == ""
