from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from driving import (
    EPOCHS,
    POSITIONS,
    STEPS,
    Position,
    drive,
    drive_through_kills,
    later_than,
    make_data,
    make_model,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distrib.callbacks import TensorBoard
from distrib.errors import ConfigurationError
from distrib.storage.uploads import UploadError, uploads

Points = dict[str, list[tuple[int, float]]]


def points(folder: Path) -> Points:
    """All scalars as TensorBoard reads them: by `folder/tag`, step and value.

    Sorted, because the files of attempts within the same second have no order.

    Of the model's summary, in which Keras numbers its objects, only the presence.
    """
    found: Points = {}
    for name in ("train", "validation"):
        if not (folder / name).exists():
            continue
        events = EventAccumulator(str(folder / name), size_guidance={"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            found[f"{name}/{tag}"] = sorted(
                (event.step, 0.0 if tag == "keras" else tf.make_ndarray(event.tensor_proto).item())
                for event in events.Tensors(tag)
            )
    return found


def summaries(folder: Path) -> dict[str, int]:
    """Count the summaries by tag with TensorFlow's own reader, which stops at any damage."""
    count: dict[str, int] = defaultdict(int)
    for path in folder.rglob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                count[f"{path.parent.name}/{value.tag}"] += 1
    return dict(count)


def close(callback: Any) -> None:
    """End a killed attempt, with all that it wrote in its files: the worst case for the next."""
    while callback._prev_summary_state:
        callback._pop_writer()
    callback._close_writers()


@pytest.mark.parametrize("snapshot_at", POSITIONS)
def test_points_are_complete_and_single_after_a_kill_anywhere(
    tmp_path: Path, snapshot_at: Position
) -> None:
    drive([keras.callbacks.TensorBoard(str(tmp_path / "keras"), update_freq=1)])
    wanted = points(tmp_path / "keras")
    assert len(wanted["train/epoch_loss"]) == EPOCHS
    for kill_at in later_than(snapshot_at)[:4]:
        folder = tmp_path / str(kill_at)
        drive_through_kills(
            lambda f=folder: TensorBoard(f, update_freq=1), snapshot_at, kill_at, close
        )
        assert points(folder) == wanted
        assert summaries(folder) == summaries(tmp_path / "keras")


def test_batch_summaries_of_a_custom_step_go_on(tmp_path: Path) -> None:
    class Summing(keras.callbacks.Callback):
        """Writes to whatever writer is current, as a custom `train_step` does."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            tf.summary.scalar("begun", epoch, step=epoch)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            tf.summary.scalar("custom", batch)

        def get_state(self) -> dict[str, Any]:
            return {}

        def set_state(self, state: dict[str, Any]) -> None:
            pass

    drive([keras.callbacks.TensorBoard(str(tmp_path / "keras"), update_freq=2), Summing()])
    dead = TensorBoard(tmp_path / "ours", update_freq=2)
    snapshot = drive([dead, Summing()], snapshot_at=(1, 1), kill_at=(2, 1))
    close(dead)
    drive([TensorBoard(tmp_path / "ours", update_freq=2), Summing()], resume=snapshot)
    wanted = points(tmp_path / "keras")
    assert wanted["train/custom"] == [(2, 1.0), (4, 1.0), (6, 1.0)]
    assert points(tmp_path / "ours") == wanted


def test_killed_between_the_first_writes(tmp_path: Path) -> None:
    dead = TensorBoard(tmp_path)
    dead.set_model(make_model())
    dead.on_train_begin()
    state = dead.get_state()
    dead.on_epoch_begin(0)
    close(dead)
    assert list(tmp_path.rglob("events*")) != []
    resumed = TensorBoard(tmp_path)
    resumed.set_model(make_model())
    resumed.on_train_begin()
    resumed.set_state(state)
    assert list(tmp_path.rglob("events*")) == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    drive([TensorBoard(tmp_path)])
    drive([keras.callbacks.TensorBoard(str(tmp_path))])
    others = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    drive_through_kills(lambda: TensorBoard(tmp_path), (0, 0), (3, 0), close)
    assert all(path.read_bytes() == content for path, content in others.items())


def test_events_that_were_lost_are_no_error(tmp_path: Path) -> None:
    dead = TensorBoard(tmp_path)
    snapshot = drive([dead], snapshot_at=(1, 0), kill_at=(1, 0))
    close(dead)
    for path in tmp_path.rglob("events*"):
        path.unlink()
    drive([TensorBoard(tmp_path)], resume=snapshot)
    assert [step for step, _ in points(tmp_path)["train/epoch_loss"]] == [1, 2]


def test_real_fit_writes_what_keras_writes(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"histogram_freq": 1, "write_images": True, "update_freq": "batch"}
    for name, kind in (("keras", keras.callbacks.TensorBoard), ("ours", TensorBoard)):
        model = make_model(run_eagerly=False)
        board = kind(str(tmp_path / name), **arguments)
        x, y = make_data()
        for _ in range(2):
            model.fit(
                x, y, batch_size=8, epochs=2, validation_data=(x, y), callbacks=[board], verbose=0
            )
        model.evaluate(x, y, callbacks=[board], verbose=0)
    ours, keras_ = summaries(tmp_path / "ours"), summaries(tmp_path / "keras")
    assert {tag.split("/")[-1] for tag in ours} >= {"keras", "epoch_loss", "batch_loss", "image"}
    assert ours == keras_


def test_evaluate_alone_writes_what_keras_writes(tmp_path: Path) -> None:
    for name, kind in (("keras", keras.callbacks.TensorBoard), ("ours", TensorBoard)):
        make_model().evaluate(*make_data(), callbacks=[kind(str(tmp_path / name))], verbose=0)
    assert summaries(tmp_path / "ours") == summaries(tmp_path / "keras") != {}


def test_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    snapshot = drive([TensorBoard(tmp_path)], snapshot_at=(EPOCHS, 0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("events*")}
    drive([TensorBoard(tmp_path)], resume=snapshot)
    assert {path: path.read_bytes() for path in tmp_path.rglob("events*")} == before


@pytest.mark.usefixtures("not_chief")
def test_only_the_chief_writes(tmp_path: Path) -> None:
    board = TensorBoard(
        tmp_path / "logs", histogram_freq=1, update_freq=1, embeddings_freq=1, profile_batch=(1, 2)
    )
    x, y = make_data()
    model = make_model(run_eagerly=False)
    model.fit(x, y, epochs=2, validation_data=(x, y), callbacks=[board], verbose=0)
    drive([board], resume=drive([board], snapshot_at=(1, 1), kill_at=(2, 0)))
    assert board._global_train_batch == EPOCHS * STEPS
    assert not (tmp_path / "logs").exists()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "distrib.callbacks.tensorboard.find_spec",
        lambda name: None if name == "tensorboard" else find_spec(name),
    )
    with pytest.raises(ConfigurationError, match=r'pip install "distrib\[tensorboard\]"'):
        TensorBoard(tmp_path)


def download(remote: Any, folder: Path) -> Path:
    uploads.finish()
    for name, content in remote.contents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("snapshot_at", [(0, 0), (1, 1), (2, 0), (3, 0)])
def test_remote_points_are_complete_and_single_on_another_machine(
    tmp_path: Path, remote: Any, snapshot_at: Position
) -> None:
    drive([keras.callbacks.TensorBoard(str(tmp_path / "keras"), update_freq=1)])

    def dies(callback: Any) -> None:
        close(callback)
        callback._working_copy.publish()  # All that it wrote has arrived: the worst case.
        uploads.finish()

    def make() -> TensorBoard:
        return TensorBoard(remote.url, update_freq=1, storage_options=remote.options)

    drive_through_kills(make, snapshot_at, later_than(snapshot_at)[:4][-1], dies)
    ours = download(remote, tmp_path / "ours")
    assert points(ours) == points(tmp_path / "keras")
    assert summaries(ours) == summaries(tmp_path / "keras")


def test_remote_state_speaks_of_what_has_arrived(remote: Any) -> None:
    board = TensorBoard(remote.url, update_freq=1, storage_options=remote.options)
    snapshot = drive([board], snapshot_at=(1, 1), kill_at=(1, 1))
    assert snapshot is not None
    uploads.pending().wait()
    sizes = snapshot.states[0]["files"]
    assert len(sizes) == 2
    assert all(len(remote.contents()[name]) >= size for name, size in sizes.items())


def test_many_kills_in_a_row_remotely(tmp_path: Path, memory_folder: Any) -> None:
    """The third attempt knows of the first one's files, which it never had on its disk."""
    drive([keras.callbacks.TensorBoard(str(tmp_path / "keras"))])
    snapshot = None
    for at, killed in [((1, 0), (2, 0)), ((2, 0), (3, 0)), ((3, 0), (3, 0))]:
        board = TensorBoard(memory_folder.url)
        snapshot = drive([board], resume=snapshot, snapshot_at=at, kill_at=killed)
        close(board)
        board._working_copy.publish()
        uploads.finish()
    drive([TensorBoard(memory_folder.url)], resume=snapshot)
    assert points(download(memory_folder, tmp_path / "ours")) == points(tmp_path / "keras")


def test_other_remote_files_are_left_alone(remote: Any) -> None:
    (remote.location() / "train" / "events.out.tfevents.other.v2").write_bytes(b"x")
    snapshot = drive([TensorBoard(remote.url, storage_options=remote.options)], snapshot_at=(0, 0))
    drive([TensorBoard(remote.url, storage_options=remote.options)], resume=snapshot)
    assert remote.contents()["train/events.out.tfevents.other.v2"] == b"x"


def test_evaluate_alone_is_sent(tmp_path: Path, remote: Any) -> None:
    board = TensorBoard(remote.url, storage_options=remote.options)
    make_model().evaluate(*make_data(), callbacks=[board], verbose=0)
    make_model().evaluate(
        *make_data(), callbacks=[keras.callbacks.TensorBoard(str(tmp_path / "whole"))], verbose=0
    )
    assert summaries(download(remote, tmp_path / "ours")) == summaries(tmp_path / "whole") != {}


def test_embeddings_and_profiles_are_sent_too(remote: Any) -> None:
    board = TensorBoard(
        remote.url, embeddings_freq=1, profile_batch=(1, 2), storage_options=remote.options
    )
    model = make_model(run_eagerly=False)
    model.fit(*make_data(), epochs=1, callbacks=[board], verbose=0)
    names = "\n".join(remote.contents())
    for wanted in ("projector_config.pbtxt", "keras_embedding.ckpt-0.weights.h5", "xplane.pb"):
        assert wanted in names


@pytest.mark.usefixtures("failed_upload")
def test_failed_upload_is_raised_by_the_next_hook(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match=r"some.png: access is denied \(not you\)"):
        TensorBoard(tmp_path).on_train_batch_begin(0)


def test_remote_points_are_sent_after_every_epoch(tmp_path: Path, memory_folder: Any) -> None:
    board = TensorBoard(memory_folder.url)
    drive([board], kill_at=(1, 0))
    uploads.finish()
    sent = points(download(memory_folder, tmp_path))
    assert [step for step, _ in sent["train/epoch_loss"]] == [0]
    close(board)


def test_second_fit_is_a_run_of_its_own(memory_folder: Any) -> None:
    snapshot = drive([TensorBoard(memory_folder.url)], snapshot_at=(1, 0))
    board = TensorBoard(memory_folder.url)
    drive([board], resume=snapshot)
    second = drive([board], snapshot_at=(2, 0))
    assert second is not None
    files = second.states[0]["files"]
    assert len(files) == 2
    assert all(board._run_id in name for name in files)


def test_unwritable_folder_is_refused_when_training_begins(s3_server: Any) -> None:
    board = TensorBoard("s3://no-such-bucket/logs", storage_options=s3_server.options)
    with pytest.raises(ConfigurationError, match="`log_dir`: cannot write to s3://no-such-bucket"):
        board.on_train_begin()


@pytest.mark.usefixtures("not_chief")
def test_the_chief_alone_writes_remotely(remote: Any) -> None:
    board = TensorBoard(remote.url, update_freq=1, storage_options=remote.options)
    drive([board], resume=drive([board], snapshot_at=(1, 1), kill_at=(2, 0)))
    assert remote.contents() == {}
