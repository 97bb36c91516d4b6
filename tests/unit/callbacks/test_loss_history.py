from __future__ import annotations

import csv
import importlib.util
import math
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from driving import (
    EPOCHS,
    POSITIONS,
    STEPS,
    Position,
    batch_logs,
    drive,
    drive_through_kills,
    later_than,
    make_data,
    make_model,
)
from fsspec.implementations.memory import MemoryFileSystem

from distrib.callbacks import LossHistory
from distrib.errors import ConfigurationError
from distrib.storage.uploads import UploadError, uploads

ALL = [batch_logs(epoch, batch)["loss"] for epoch in range(EPOCHS) for batch in range(STEPS)]
FILES = ["loss.csv", "loss.png", *(f"plot_at_epoch_{epoch}.png" for epoch in range(EPOCHS))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_real_fit(tmp_path: Path) -> None:
    history, (x, y) = LossHistory(tmp_path), make_data()
    result = make_model().fit(
        x, y, batch_size=4, epochs=2, validation_data=(x, y), callbacks=[history], verbose=0
    )
    assert len(history.losses) == 8
    assert history.per_batch_losses == history.losses[4:]
    assert history.losses[3::4] == result.history["loss"]
    with (tmp_path / "loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == history.losses
    assert [(int(row["epoch"]), int(row["batch"])) for row in rows] == [
        (epoch, batch) for epoch in range(2) for batch in range(4)
    ]
    for name in ("loss.png", "plot_at_epoch_0.png", "plot_at_epoch_1.png"):
        assert matplotlib.image.imread(tmp_path / name).shape == (600, 960, 4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    drive([LossHistory(folder)])
    return contents(folder)


@pytest.mark.parametrize("snapshot_at", POSITIONS)
def test_files_are_those_of_an_uninterrupted_run(
    tmp_path: Path, snapshot_at: Position, whole: dict[str, bytes]
) -> None:
    kill_at = later_than(snapshot_at)[-2:][0]
    history = drive_through_kills(lambda: LossHistory(tmp_path), snapshot_at, kill_at)
    assert sorted(whole) == FILES
    assert contents(tmp_path) == whole
    assert history.losses == ALL
    assert history.per_batch_losses == ALL[-STEPS:]


@pytest.mark.parametrize("snapshot_at", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)])
def test_restoring_undoes_later_numbers(tmp_path: Path, snapshot_at: Position) -> None:
    drive([LossHistory(tmp_path / "short")], kill_at=snapshot_at)
    snapshot = drive([LossHistory(tmp_path / "ours")], snapshot_at=snapshot_at)
    assert snapshot is not None
    again = LossHistory(tmp_path / "ours")
    again.on_train_begin()
    again.set_state(snapshot.states[0])
    epochs, batches = snapshot.position
    assert again.losses == ALL[: epochs * STEPS + batches]
    for name in ("loss.csv", "loss.png"):
        short, ours = tmp_path / "short" / name, tmp_path / "ours" / name
        assert short.exists() == ours.exists() == (epochs > 0)
        assert epochs == 0 or short.read_bytes() == ours.read_bytes()


def test_second_fit_starts_anew(tmp_path: Path) -> None:
    history = LossHistory(tmp_path)
    drive([history])
    before = contents(tmp_path)
    drive([history])
    assert history.losses == ALL
    assert contents(tmp_path) == before


def test_several_steps_in_one_call(tmp_path: Path) -> None:
    history, model = LossHistory(tmp_path), make_model(run_eagerly=False, steps_per_execution=2)
    model.fit(*make_data(), batch_size=4, epochs=1, callbacks=[history], verbose=0)
    rows = (tmp_path / "loss.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["batch", "1", "3"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", [[math.nan] * 3, [math.inf, 1.0, 0.5], [0.5]])
def test_losses_that_are_hard_to_draw(tmp_path: Path, losses: list[float]) -> None:
    history = LossHistory(tmp_path)
    history.on_train_begin()
    history.on_epoch_begin(0)
    for batch, loss in enumerate(losses):
        history.on_batch_end(batch, {"loss": loss})
    history.on_epoch_end(0, {"loss": losses[-1]})
    text = (tmp_path / "loss.csv").read_text()
    assert [float(row.split(",")[2]) for row in text.splitlines()[1:]] == pytest.approx(
        losses, nan_ok=True
    )


def test_many_batches_stay_cheap(tmp_path: Path) -> None:
    history = LossHistory(tmp_path)
    history.on_train_begin()
    history.on_epoch_begin(0)
    logs = {"loss": 0.5}
    for batch in range(100_000):
        history.on_batch_end(batch, logs)
    history.on_epoch_end(0, logs)
    state = history.get_state()
    size = sum(value.nbytes for value in state.values() if isinstance(value, np.ndarray))
    assert size < 13 * 100_000
    assert (tmp_path / "loss.csv").read_text().count("\n") == 100_001


def test_missing_loss_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"which hold: accuracy\. Return it"):
        LossHistory(tmp_path).on_batch_end(0, {"accuracy": 1.0})
    with pytest.raises(ConfigurationError, match=r"which hold: nothing\. Return it"):
        LossHistory(tmp_path).on_batch_end(0)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "distrib.callbacks.loss_history.find_spec",
        lambda name: None if name == "matplotlib" else find_spec(name),
    )
    with pytest.raises(ConfigurationError, match=r'pip install "distrib\[plots\]"'):
        LossHistory(tmp_path)


@pytest.mark.parametrize("snapshot_at", [(0, 1), (1, 0), (2, 2)])
def test_remote_files_are_those_of_an_uninterrupted_run(
    remote: Any, snapshot_at: Position, whole: dict[str, bytes]
) -> None:
    kill_at = later_than(snapshot_at)[-2:][0]
    drive_through_kills(lambda: LossHistory(remote.url, remote.options), snapshot_at, kill_at)
    assert remote.contents() == whole


@pytest.mark.parametrize("snapshot_at", [(0, 0), (1, 1)])
def test_restoring_undoes_later_remote_numbers(
    tmp_path: Path, remote: Any, snapshot_at: Position
) -> None:
    drive([LossHistory(tmp_path)], kill_at=snapshot_at)
    snapshot = drive([LossHistory(remote.url, remote.options)], snapshot_at=snapshot_at)
    assert snapshot is not None
    again = LossHistory(remote.url, remote.options)
    again.on_train_begin()
    again.set_state(snapshot.states[0])
    uploads.finish()
    for name in ("loss.csv", "loss.png"):
        assert remote.contents().get(name) == contents(tmp_path).get(name)


@pytest.mark.usefixtures("failed_upload")
def test_failed_upload_is_raised_by_the_next_hook(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match=r"some.png: access is denied \(not you\)"):
        LossHistory(tmp_path).on_batch_end(0, {"loss": 1.0})


@pytest.mark.usefixtures("no_uploads")
def test_failed_upload_is_raised_at_the_end_at_the_latest(memory_folder: Any) -> None:
    history = LossHistory(memory_folder.url)
    history.on_train_begin()
    history._save_numbers()
    with pytest.raises(UploadError, match=r"loss.csv: access is denied \(not you\)"):
        history.on_train_end()


def test_files_under_way_are_waited_for_before_they_are_removed(
    memory_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_file = MemoryFileSystem.put_file

    def put_late(*arguments: Any) -> None:
        time.sleep(0.1)
        put_file(*arguments)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_late)
    history = LossHistory(memory_folder.url)
    snapshot = drive([history], snapshot_at=(0, 0), kill_at=(1, 0))
    assert snapshot is not None
    history.set_state(snapshot.states[0])
    uploads.finish()
    assert list(memory_folder.contents()) == ["plot_at_epoch_0.png"]


def test_unwritable_folder_is_refused_when_training_begins(s3_server: Any) -> None:
    history = LossHistory("s3://no-such-bucket/plots", storage_options=s3_server.options)
    with pytest.raises(ConfigurationError, match="`directory`: cannot write to s3://no-such-bucke"):
        history.on_train_begin()


@pytest.mark.usefixtures("not_chief")
def test_the_chief_alone_writes_remotely(remote: Any) -> None:
    history = drive_through_kills(lambda: LossHistory(remote.url, remote.options), (1, 1), (2, 0))
    assert history.losses == ALL
    assert remote.contents() == {}


@pytest.mark.usefixtures("not_chief")
def test_all_remember_and_the_chief_writes(tmp_path: Path) -> None:
    history = drive_through_kills(lambda: LossHistory(tmp_path / "plots"), (1, 1), (2, 0))
    assert history.losses == ALL
    assert not (tmp_path / "plots").exists()
