from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distrib.storage.locate import locate
from distrib.storage.location import Location
from distrib.storage.uploads import uploads
from distrib.storage.working_copy import WorkingCopy


def publish(copy: WorkingCopy) -> None:
    copy.publish()
    uploads.finish()


def everything(_: str) -> bool:
    return True


def test_the_working_copy_of_a_local_folder_is_the_folder(tmp_path: Path) -> None:
    copy = WorkingCopy(locate(tmp_path, "log_dir"))
    assert copy.path == tmp_path
    (tmp_path / "log.csv").write_text("x")
    copy.fetch("log.csv")
    copy.fetch("none")
    publish(copy)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_changed_files_are_uploaded(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    upload = uploads.upload
    monkeypatch.setattr(
        uploads, "upload", lambda source, target: (sent.append(target.name), upload(source, target))
    )
    copy = WorkingCopy(remote.location())
    (copy.path / "train").mkdir()
    (copy.path / "train" / "events").write_bytes(b"one")
    (copy.path / "log.csv").write_bytes(b"a")
    publish(copy)
    assert remote.contents() == {"train/events": b"one", "log.csv": b"a"}
    assert sorted(sent) == ["events", "log.csv"]
    publish(copy)
    with (copy.path / "train" / "events").open("ab") as events:
        events.write(b"two")
        events.flush()
        publish(copy)
    assert remote.contents() == {"train/events": b"onetwo", "log.csv": b"a"}
    assert sorted(sent) == ["events", "events", "log.csv"]


def test_the_upload_is_a_snapshot(memory_folder: Any) -> None:
    copy = WorkingCopy(memory_folder.location())
    path = copy.path / "log.csv"
    path.write_bytes(b"as published")
    copy.publish()
    path.write_bytes(b"later")
    uploads.finish()
    assert memory_folder.contents() == {"log.csv": b"as published"}


def test_another_machine_fetches_a_file(remote: Any) -> None:
    (remote.location() / "log.csv").write_bytes(b"rows")
    copy = WorkingCopy(remote.location())
    assert list(copy.path.iterdir()) == []
    copy.fetch("log.csv")
    assert (copy.path / "log.csv").read_bytes() == b"rows"
    (remote.location() / "log.csv").remove()
    publish(copy)
    assert remote.contents() == {}  # It had not changed here.
    copy.fetch("log.csv")
    assert not (copy.path / "log.csv").exists()
    (copy.path / "log.csv").write_bytes(b"rows")
    publish(copy)
    assert remote.contents() == {"log.csv": b"rows"}


@pytest.mark.parametrize("same_process", [True, False])
@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_roll_back_truncates_and_removes_files(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, same_process: bool
) -> None:
    if kind == "local":
        folder = locate(tmp_path, "log_dir")
    elif kind == "memory":
        folder = request.getfixturevalue("memory_folder").location()
    else:
        folder = request.getfixturevalue("s3_server").folder().location()
    copy = WorkingCopy(folder)
    (copy.path / "train").mkdir(exist_ok=True)
    for name in ("grown", "same", "later", "other", "short"):
        (copy.path / "train" / name).write_bytes(name.encode())
    publish(copy)
    if same_process:  # It has written more, which nobody has sent.
        for name in ("same", "unsent"):
            with (copy.path / "train" / name).open("ab") as file:
                file.write(b"more")
    else:
        copy = WorkingCopy(folder)
    sizes = {"train/grown": 2, "train/same": 4, "train/lost": 7, "train/short": 99}
    for _ in range(2):
        copy.roll_back("train", sizes, lambda name: name != "other")
        copy.roll_back("validation", sizes, everything)
        uploads.finish()
        train = folder / "train"
        assert {name: (train / name).read_bytes() for name in train.names()} == {
            "grown": b"gr",
            "other": b"other",
            "same": b"same",
            "short": b"short",
        }
    if same_process:
        here = {path.name: path.read_bytes() for path in (copy.path / "train").iterdir()}
        assert here == {name: (train / name).read_bytes() for name in train.names()}
    elif kind != "local":
        assert os.listdir(copy.path / "train") == ["grown"]  # The others were not carried here.


def test_roll_back_lists_a_local_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "later").write_bytes(b"x")
    copy = WorkingCopy(locate(tmp_path, "log_dir"))
    monkeypatch.delattr(Location, "names")
    copy.roll_back("train", {}, everything)
    assert list((tmp_path / "train").iterdir()) == []


@pytest.fixture
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are under way for a while."""
    put_file = MemoryFileSystem.put_file

    def put_late(*arguments: Any) -> None:
        time.sleep(0.2)
        put_file(*arguments)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_late)


@pytest.mark.usefixtures("_slow")
def test_fetch_and_roll_back_wait_for_uploads(memory_folder: Any) -> None:
    copy = WorkingCopy(memory_folder.location())
    (copy.path / "train").mkdir()
    (copy.path / "train" / "events").write_bytes(b"x")
    copy.publish()
    copy.fetch("train/events")
    assert (copy.path / "train" / "events").read_bytes() == b"x"
    (copy.path / "train" / "later").write_bytes(b"x")
    copy.publish()
    copy.roll_back("train", {"train/events": 1}, everything)
    uploads.finish()
    assert memory_folder.contents() == {"train/events": b"x"}
