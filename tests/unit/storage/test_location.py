from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from distrib.storage.errors import StorageError
from distrib.storage.locate import locate
from distrib.storage.location import Location


@pytest.fixture(params=["local", "memory", "s3", "dir"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind; `dir` is a file system that needs its folders made."""
    if request.param == "local":
        return locate(tmp_path / "runs" / "17", "directory")
    if request.param == "dir":
        options = {"path": str(tmp_path), "target_protocol": "file"}
        return locate("dir://runs/17", "directory", options)
    if request.param == "memory":
        remote = request.getfixturevalue("memory_folder")
    else:
        remote = request.getfixturevalue("s3_server").folder()
    location: Location = remote.location()
    return location


def test_a_file_is_replaced_read_and_removed(folder: Location) -> None:
    place = folder / "log.csv"
    assert (place.name, place.parent) == ("log.csv", folder)
    assert not place.exists()
    for operation in (place.read_bytes, place.size):
        with pytest.raises(FileNotFoundError):
            operation()
    for content in (b"old", b"", b"new content"):
        place.write_bytes(content)
        assert place.exists()
        assert place.read_bytes() == content
        assert place.size() == len(content)
    place.remove()
    assert not place.exists()
    place.remove()


def test_a_folder_is_listed_and_removed(folder: Location) -> None:
    assert folder.names() == []
    assert not folder.exists()
    folder.remove_tree()
    for name in ("b", "a", "deep/er/c"):
        (folder / name).write_bytes(b"x")
    assert folder.names() == ["a", "b", "deep"]
    assert (folder / "deep").names() == ["er"]
    assert folder.exists()
    (folder / "deep").remove_tree()
    assert folder.names() == ["a", "b"]
    folder.remove_tree()
    assert folder.names() == []


def test_upload_and_download(folder: Location, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    content = bytes(range(256)) * 1000
    source.write_bytes(content)
    place = folder / "deep" / "file"
    place.upload(source)
    assert place.read_bytes() == content
    place.download(target)
    assert target.read_bytes() == source.read_bytes() == content
    target.write_bytes(b"mine")
    with pytest.raises(FileNotFoundError):
        (folder / "none").download(target)
    assert target.read_bytes() == b"mine"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("folder", ["local", "memory", "s3"], indirect=True)
def test_one_of_many_writers_creates_a_file(folder: Location) -> None:
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return (folder / "claim").create(b"writer %d" % number)

    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(create, range(8)))
        assert made.count(True) == 1
        assert (folder / "claim").read_bytes() == b"writer %d" % made.index(True)
        (folder / "claim").remove()


def test_the_store_itself_rejects_the_second_writer(s3_server: Any) -> None:
    """Both writers have seen that there is no file, and then one is faster."""
    remote = s3_server.folder()
    faster, slower = (remote.location() / "claim" for _ in range(2))
    put = slower.filesystem.pipe_file

    def put_late(*arguments: Any, **more: Any) -> None:
        assert faster.create(b"faster")
        put(*arguments, **more)

    slower.filesystem.pipe_file = put_late
    assert not slower.create(b"slower")
    assert faster.read_bytes() == b"faster"


def test_create_in_memory_is_atomic(memory_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = memory_folder.location() / "claim"
    made: list[bool] = []
    second = threading.Thread(target=lambda: made.append(place.create(b"second")))
    commit = MemoryFile.commit

    def commit_late(self: Any) -> None:
        if not second.ident:
            second.start()
            second.join(0.3)  # It would be done by then.
        commit(self)

    monkeypatch.setattr(MemoryFile, "commit", commit_late)
    assert place.create(b"first")
    second.join()
    assert made == [False]


def test_a_created_file_stays(folder: Location) -> None:
    place = folder / "claim"
    assert place.create(b"one")
    assert not place.create(b"two")
    assert place.create(b"one")  # As after an answer that was lost.
    assert place.read_bytes() == b"one"


def test_a_failed_download_leaves_the_old_file(
    memory_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Any, path: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise PermissionError("no longer")

    monkeypatch.setattr(MemoryFileSystem, "get_file", half)
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(PermissionError):
        (memory_folder.location() / "x").download(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.fixture(params=["before the store did it", "after the store did it"])
def losing(
    request: pytest.FixtureRequest, memory_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> Location:
    """A store whose connection breaks in the first write."""
    calls: list[str] = []
    write = MemoryFileSystem.pipe_file

    def pipe_file(self: Any, path: str, value: bytes, **arguments: Any) -> None:
        calls.append(path)
        if len(calls) > 1 or request.param.startswith("after"):
            write(self, path, value, **arguments)
        if len(calls) == 1:
            raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    location: Location = memory_folder.location()
    return location


def test_a_broken_connection_is_no_loss(losing: Location) -> None:
    assert (losing / "claim").create(b"ours")
    assert not (losing / "claim").create(b"theirs")
    assert (losing / "claim").read_bytes() == b"ours"


def test_a_write_is_repeated(losing: Location) -> None:
    (losing / "log.csv").write_bytes(b"x")
    assert (losing / "log.csv").read_bytes() == b"x"


def test_a_store_that_ignores_the_condition_overwrites_nothing_that_was_there(
    memory_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = MemoryFileSystem.pipe_file
    monkeypatch.setattr(
        MemoryFileSystem,
        "pipe_file",
        lambda self, path, value, mode: write(self, path, value, mode="overwrite"),
    )
    place = memory_folder.location() / "claim"
    assert place.create(b"one")
    assert not place.create(b"two")
    assert place.read_bytes() == b"one"


def test_a_store_that_refuses_to_create_is_an_error(s3_server: Any) -> None:
    place = locate("s3://no-such-bucket-of-ours/claim", "directory", s3_server.options)
    with pytest.raises(FileNotFoundError):
        place.create(b"x")


def test_listings_are_fresh(s3_server: Any) -> None:
    folder = s3_server.folder().location()
    (folder / "a").write_bytes(b"x")
    assert folder.names() == ["a"]
    bucket, _, key = folder.path.partition("/")
    for name in ("", "b", "c/d"):  # The first marks the folder, as some consoles do.
        s3_server.client().put_object(Bucket=bucket, Key=f"{key}/{name}", Body=b"")
    assert folder.names() == ["a", "b", "c"]
    assert (folder / "b").names() == []
    assert (folder / "b").exists()


def test_an_error_is_not_taken_for_absence(
    memory_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError("not you")

    for name in ("info", "ls", "rm", "rm_file", "cat_file"):
        monkeypatch.setattr(MemoryFileSystem, name, denied)
    place = memory_folder.location()
    for operation in (place.exists, place.size, place.names, place.remove, place.remove_tree):
        with pytest.raises(PermissionError):
            operation()
    with pytest.raises(PermissionError):
        place.create(b"x")


def test_errors_of_libraries_become_oserrors(
    memory_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gcsfs.retry import HttpError

    def failing(*_: Any) -> bytes:
        raise HttpError({"code": 418, "message": "I am a teapot"})

    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing)
    place = memory_folder.location()
    with pytest.raises(StorageError, match=r"memory://.*/17: .* \(I am a teapot, 418\)") as caught:
        place.read_bytes()
    assert isinstance(caught.value.__cause__, HttpError)


def test_the_timeout_is_no_part_of_the_identity(memory_folder: Any) -> None:
    place = memory_folder.location()
    hasty = replace(place, timeout=1.0)
    assert hasty == place
    assert hash(hasty) == hash(place)
    assert (hasty / "x").timeout == (hasty / "x").parent.timeout == 1.0


def test_a_bucket_is_its_own_parent() -> None:
    assert locate("s3://bucket", "directory").parent.url == "s3://bucket"
    assert locate("/", "directory").parent.url == "/"
