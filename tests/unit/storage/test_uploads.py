from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distrib.storage.locate import locate
from distrib.storage.location import Location
from distrib.storage.scratch import scratch
from distrib.storage.uploads import UploadError, UploadQueue


class Gate:
    """Blocks and records uploads to the memory file system."""

    def __init__(self) -> None:
        self.uploaded: list[tuple[str, bytes]] = []
        self.reached = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self.failing: set[str] = set()

    def put_file(self, filesystem: Any, source: str, path: str) -> None:
        self.reached.release()
        assert self.open.acquire(timeout=60)
        name = path.rpartition("/")[2]
        if name in self.failing:
            raise PermissionError(f"not to {name}")
        content = Path(source).read_bytes()
        self.uploaded.append((name, content))
        filesystem.pipe_file(path, content)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(
        MemoryFileSystem, "put_file", lambda self, source, path: gate.put_file(self, source, path)
    )
    return gate


@pytest.fixture
def uploads() -> UploadQueue:
    return UploadQueue()


@pytest.fixture
def send(uploads: UploadQueue, memory_folder: Any) -> Callable[[str, bytes], None]:
    folder: Location = memory_folder.location()

    def send(name: str, content: bytes) -> None:
        with uploads.replacing(folder / name) as temporary:
            temporary.write_bytes(content)

    return send


Send = Callable[[str, bytes], None]


def test_an_upload_leaves_no_local_file(uploads: UploadQueue, remote: Any) -> None:
    before = set(scratch().iterdir())
    place = remote.location() / "deep" / "best.weights.h5"
    with uploads.replacing(place) as temporary:
        assert temporary.name.endswith("best.weights.h5")
        temporary.write_bytes(b"weights")
    uploads.finish()
    assert remote.contents() == {"deep/best.weights.h5": b"weights"}
    assert set(scratch().iterdir()) == before


def test_a_local_file_is_replaced_at_once(uploads: UploadQueue, tmp_path: Path) -> None:
    place = locate(tmp_path / "new" / "log.csv", "filename")
    with uploads.replacing(place) as temporary:
        temporary.write_bytes(b"x")
        assert temporary.parent == tmp_path / "new"
    assert place.read_bytes() == b"x"
    assert uploads.pending().uploads == []


def test_a_block_that_raises_uploads_nothing(uploads: UploadQueue, remote: Any) -> None:
    before = set(scratch().iterdir())

    def fail() -> None:
        with uploads.replacing(remote.location() / "x") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    uploads.finish()
    assert remote.contents() == {}
    assert set(scratch().iterdir()) == before


def test_the_caller_does_not_wait_and_the_order_is_kept(
    uploads: UploadQueue, gate: Gate, send: Send
) -> None:
    for name in ("a", "b", "c"):
        send(name, b"1")
    assert gate.uploaded == []
    gate.open.release(3)
    uploads.finish()
    assert gate.uploaded == [("a", b"1"), ("b", b"1"), ("c", b"1")]


def test_only_the_newest_content_is_uploaded(uploads: UploadQueue, gate: Gate, send: Send) -> None:
    before = set(scratch().iterdir())
    send("a", b"1")
    gate.reached.acquire()  # It is being uploaded, and can no longer be replaced.
    for content in (b"2", b"3"):
        send("b", content)
        send("a", content)
    gate.open.release(5)
    uploads.finish()
    assert gate.uploaded == [("a", b"1"), ("b", b"3"), ("a", b"3")]
    assert set(scratch().iterdir()) == before


def test_pending_waits_only_for_earlier_uploads(
    uploads: UploadQueue, gate: Gate, send: Send
) -> None:
    send("a", b"1")
    gate.reached.acquire()
    send("b", b"1")
    pending = uploads.pending()
    assert len(pending.uploads) == 2
    send("c", b"1")
    waiter = threading.Thread(target=pending.wait)
    waiter.start()
    gate.open.release()
    gate.reached.acquire()
    assert waiter.is_alive()  # b is not uploaded yet.
    gate.open.release()
    waiter.join(60)
    assert not waiter.is_alive()  # Although c is not uploaded yet.
    gate.open.release()
    uploads.finish()
    assert uploads.pending().uploads == []


def test_an_error_is_raised_in_every_wait_and_once_in_the_step_loop(
    uploads: UploadQueue, gate: Gate, send: Send
) -> None:
    before = set(scratch().iterdir())
    gate.failing = {"bad"}
    gate.open.release(10)
    send("bad", b"1")
    pending = uploads.pending()
    message = r"Could not write memory://.*/bad: access is denied \(not to bad\); ask for .* start"
    with pytest.raises(UploadError, match=message) as caught:
        pending.wait()
    assert isinstance(caught.value.__cause__, PermissionError)
    with pytest.raises(UploadError, match="bad"):
        uploads.pending().wait()  # A checkpoint must not refer to the file.
    with pytest.raises(UploadError, match="bad"):
        send("good", b"1")
    uploads.check()  # The error has been raised already.
    uploads.pending().wait()
    send("good", b"1")  # Other uploads continue.
    uploads.finish()
    assert gate.uploaded == [("good", b"1")]
    send("bad", b"2")
    with pytest.raises(UploadError, match="bad"):
        uploads.finish()
    uploads.finish()
    assert set(scratch().iterdir()) == before


def test_all_errors_are_raised(uploads: UploadQueue, gate: Gate, send: Send) -> None:
    gate.failing = {"a", "b"}
    for name in ("a", "b", "c"):
        send(name, b"1")
    gate.open.release(3)
    with pytest.raises(UploadError, match="/a: access is denied") as caught:
        uploads.finish()
    (note,) = caught.value.__notes__
    assert "/b: access is denied" in note
    assert gate.uploaded == [("c", b"1")]


def test_a_removed_source_is_an_error_and_the_queue_continues(
    uploads: UploadQueue, gate: Gate, send: Send, memory_folder: Any
) -> None:
    send("a", b"1")
    gate.reached.acquire()
    for path in scratch().glob("*-a"):
        path.unlink()
    gate.open.release(2)
    with pytest.raises(UploadError, match="/a: it does not exist"):
        uploads.finish()
    send("b", b"1")
    uploads.finish()
    assert gate.uploaded == [("b", b"1")]


FORKING = """
import os, socket, sys
from distrib.storage.locate import locate
from distrib.storage.uploads import uploads
silent = socket.create_server(("127.0.0.1", 0))
endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
place = locate("s3://b/x", "directory", {"endpoint_url": endpoint, "key": "k", "secret": "s"})
for _ in range(2):
    with uploads.replacing(place) as temporary:
        temporary.write_bytes(b"content")
silent.accept()
pid = os.fork()
if pid == 0:
    uploads.finish()
    sys.exit(5)
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_process_does_not_wait_for_its_parents_uploads() -> None:
    assert subprocess.run([sys.executable, "-c", FORKING], timeout=100).returncode == 5


EXITING = """
import sys, time
from distrib.storage.locate import locate
from distrib.storage.uploads import uploads
url, endpoint, last = sys.argv[1:]
options = {"endpoint_url": endpoint, "key": "k", "secret": "s"}
for number in range(3):
    with uploads.replacing(locate(f"{url}/{number}", "directory", options)) as temporary:
        temporary.write_bytes(b"content")
exec(last)
"""


@pytest.mark.parametrize("last", ["pass", "sys.exit(7)", "raise ValueError('a bug')"])
def test_a_process_exits_after_all_uploads(s3_server: Any, last: str) -> None:
    remote = s3_server.folder()
    # A host name, because resolving it takes a thread, which cannot be started late at exit.
    endpoint = s3_server.endpoint.replace("127.0.0.1", "localhost")
    command = [sys.executable, "-c", EXITING, remote.url, endpoint, last]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == {"p": 0, "s": 7, "r": 1}[last[0]]
    assert remote.contents() == dict.fromkeys(("0", "1", "2"), b"content")
    assert ("a bug" in result.stderr) == last.startswith("raise")


def test_retries_are_shorter_at_exit(
    uploads: UploadQueue, memory_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on, timeouts = threading.Event(), threading.Event(), []

    def upload(location: Location, source: Path) -> None:
        timeouts.append(location.timeout)
        started.set()
        assert go_on.wait(60)

    monkeypatch.setattr(Location, "upload", upload)
    for name in ("a", "b", "c"):
        with uploads.replacing(memory_folder.location() / name) as temporary:
            temporary.write_bytes(b"x")
        assert started.wait(60)
    finish = uploads.finish
    monkeypatch.setattr(uploads, "finish", lambda: (go_on.set(), finish()))
    uploads._finish_at_exit()
    assert timeouts == [120.0, 10.0, 10.0]


def test_all_errors_at_exit_are_logged(s3_server: Any) -> None:
    command = [sys.executable, "-c", EXITING, "s3://no-such-bucket/x", s3_server.endpoint, "pass"]
    result = subprocess.run(command, capture_output=True, text=True)
    for number in range(3):
        assert f"distrib: Could not write s3://no-such-bucket/x/{number}: the b" in result.stderr
