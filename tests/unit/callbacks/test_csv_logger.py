from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from driving import EPOCHS, POSITIONS, Position, drive, drive_through_kills, later_than

from distrib.callbacks import CSVLogger
from distrib.errors import ConfigurationError
from distrib.storage.uploads import UploadError, uploads


def keras_file(path: Path, **arguments: Any) -> bytes:
    drive([keras.callbacks.CSVLogger(str(path), **arguments)])
    return path.read_bytes()


@pytest.mark.parametrize("snapshot_at", POSITIONS)
@pytest.mark.parametrize("append", [False, True])
def test_rows_are_complete_and_single_after_a_kill_anywhere(
    tmp_path: Path, snapshot_at: Position, append: bool
) -> None:
    for kill_at in later_than(snapshot_at):
        path = tmp_path / f"{kill_at}.csv"
        reference = tmp_path / f"{kill_at}-keras.csv"
        for each in (path, reference):
            each.write_bytes(b"epoch,loss\r\n7,0.5\r\n")
        wanted = keras_file(reference, append=append)
        drive_through_kills(lambda p=path: CSVLogger(p, append=append), snapshot_at, kill_at)
        assert path.read_bytes() == wanted
        assert (b"7,0.5" in wanted) == append


def test_many_kills_in_a_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    snapshot = None
    for at, killed in pairwise(POSITIONS):
        snapshot = drive([CSVLogger(path)], resume=snapshot, snapshot_at=at, kill_at=killed) or (
            snapshot
        )
    drive([CSVLogger(path)], resume=snapshot)
    assert path.read_bytes() == keras_file(tmp_path / "keras.csv")


def test_lost_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    snapshot = drive([CSVLogger(path)], snapshot_at=(2, 0), kill_at=(2, 0))
    path.unlink()
    drive([CSVLogger(path)], resume=snapshot)
    assert path.read_bytes() == keras_file(tmp_path / "keras.csv")


def test_row_is_on_disk_when_the_epoch_ends(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    logger = CSVLogger(path)
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    logger.on_epoch_end(0, {"loss": 1.5})
    assert path.read_text().splitlines() == ["epoch,loss,val_loss", "0,1.5,NA"]


def test_second_fit_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    logger = CSVLogger(path)
    snapshot = drive([logger], snapshot_at=(2, 0))
    drive([logger], resume=snapshot)
    drive([logger])
    assert path.read_bytes() == keras_file(tmp_path / "keras.csv")


def test_values_and_separator_are_written_as_by_keras(tmp_path: Path) -> None:
    logs = {"loss": np.float32(0.1), "b": np.array([1, 2]), "c": np.array(3.0), "d": "text;"}
    files = []
    for kind in (keras.callbacks.CSVLogger, CSVLogger):
        path = tmp_path / f"{kind.__module__}.csv"
        logger = kind(str(path), separator=";")
        logger.on_train_begin()
        logger.on_epoch_begin(0)
        logger.on_epoch_end(0, logs)
        logger.on_epoch_end(1, {"loss": 1.0})
        logger.on_train_end()
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_folder_is_made(tmp_path: Path) -> None:
    drive([CSVLogger(tmp_path / "new" / "log.csv")])
    assert (tmp_path / "new" / "log.csv").exists()


@pytest.mark.parametrize("snapshot_at", [(0, 0), (1, 1), (3, 0)])
@pytest.mark.parametrize("append", [False, True])
def test_remote_rows_are_complete_and_single_on_another_machine(
    tmp_path: Path, remote: Any, snapshot_at: Position, append: bool
) -> None:
    first = b"epoch,loss\r\n7,0.5\r\n"
    (tmp_path / "keras.csv").write_bytes(first)
    (remote.location() / "log.csv").write_bytes(first)

    def make() -> CSVLogger:
        uploads.finish()  # All that a killed attempt wrote has arrived: the worst case.
        url = f"{remote.url}/log.csv"
        return CSVLogger(url, append=append, storage_options=remote.options)

    drive_through_kills(make, snapshot_at, later_than(snapshot_at)[-1])
    assert remote.contents() == {"log.csv": keras_file(tmp_path / "keras.csv", append=append)}


def test_remote_row_is_sent_when_the_epoch_ends(remote: Any) -> None:
    logger = CSVLogger(f"{remote.url}/log.csv", storage_options=remote.options)
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    logger.on_epoch_end(0, {"loss": 1.5})
    uploads.finish()
    assert remote.contents() == {"log.csv": b"epoch,loss,val_loss\r\n0,1.5,NA\r\n"}


def test_remote_second_fit_starts_anew_or_goes_on(tmp_path: Path, remote: Any) -> None:
    for append in (False, True):
        path = tmp_path / f"{append}.csv"
        url, options = f"{remote.url}/{append}.csv", remote.options
        for logger in (
            CSVLogger(url, append=append, storage_options=options),
            keras.callbacks.CSVLogger(str(path), append=append),
        ):
            drive([logger])
            drive([logger])
        assert remote.contents()[f"{append}.csv"] == path.read_bytes()


def test_unwritable_folder_is_refused_when_training_begins(s3_server: Any) -> None:
    logger = CSVLogger("s3://no-such-bucket/log.csv", storage_options=s3_server.options)
    with pytest.raises(ConfigurationError, match="`filename`: cannot write to s3://no-such-bucket"):
        logger.on_train_begin()


def test_later_rows_are_taken_back_when_training_goes_on(remote: Any) -> None:
    url, options = f"{remote.url}/log.csv", remote.options
    snapshot = drive([CSVLogger(url, storage_options=options)], snapshot_at=(1, 0))
    assert remote.contents()["log.csv"].count(b"\n") == 1 + EPOCHS
    drive([CSVLogger(url, storage_options=options)], resume=snapshot, kill_at=(1, 1))
    uploads.finish()
    assert remote.contents()["log.csv"].count(b"\n") == 1 + 1


@pytest.mark.usefixtures("failed_upload")
def test_failed_upload_is_raised_by_the_next_hook(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match=r"some.png: access is denied \(not you\)"):
        CSVLogger(tmp_path / "log.csv").on_epoch_begin(1)


@pytest.mark.usefixtures("no_uploads")
def test_failed_upload_is_raised_at_the_end_at_the_latest(memory_folder: Any) -> None:
    with pytest.raises(UploadError, match=r"log.csv: access is denied \(not you\)"):
        drive([CSVLogger(f"{memory_folder.url}/log.csv")])


@pytest.mark.usefixtures("not_chief")
def test_only_the_chief_touches_a_remote_file(remote: Any) -> None:
    url = f"{remote.url}/log.csv"
    drive_through_kills(lambda: CSVLogger(url, storage_options=remote.options), (1, 1), (2, 0))
    assert remote.contents() == {}


@pytest.mark.usefixtures("not_chief")
def test_only_the_chief_touches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("old")
    drive_through_kills(lambda: CSVLogger(path), (1, 1), (2, 0))
    assert path.read_text() == "old"
