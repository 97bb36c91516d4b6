from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests

from distrib.errors import ConfigurationError, StoreUnavailableError
from distrib.storage.locate import locate
from distrib.storage.location import Location
from distrib.storage.write_check import check_writable


def refusal(location: Location, transient: bool = False, **arguments: Any) -> str:
    with pytest.raises(StoreUnavailableError if transient else ConfigurationError) as caught:
        check_writable(location, "directory", **arguments)
    assert caught.value.exit_code == (76 if transient else 78)
    message = str(caught.value)
    assert message.startswith("`directory`: ")
    assert location.url in message
    assert "hush" not in message
    return message


def test_a_writable_folder_stays_as_it_was(remote: Any, tmp_path: Path) -> None:
    for folder in (remote.location(), locate(tmp_path / "new" / "run", "directory")):
        check_writable(folder, "directory")
        assert folder.names() == []
        (folder / "log.csv").write_bytes(b"x")
        check_writable(folder, "directory")
        assert folder.names() == ["log.csv"]


KILLED = """
import os, signal
from distrib.storage.locate import locate
from distrib.storage.write_check import check_writable

os.fsync = os.replace = os.unlink = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
check_writable(locate({folder!r}, "directory"), "directory")
"""


def test_the_probe_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED.format(folder=str(tmp_path))], check=False)
    assert os.listdir(tmp_path)
    check_writable(locate(tmp_path, "directory"), "directory")
    assert os.listdir(tmp_path) == []


# The local disk


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    message = refusal(locate(tmp_path / "run", "directory"))
    assert "a file is in the way" in message
    assert "remove it, or give another path" in message
    message = refusal(locate(tmp_path / "run" / "17", "directory"))
    assert "a file exists where a folder should be" in message


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KB."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system(mounted: Path) -> None:
    (mounted / "filler").write_bytes(bytes(16384))
    message = refusal(locate(mounted, "directory"), transient=True)
    assert "cannot write to" in message
    assert "no space is left" in message
    assert "free some space" in message


def test_a_read_only_file_system(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    assert "the file system is read-only" in refusal(locate(mounted, "directory"))


def test_a_folder_of_another_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:  # Root may write everywhere.
        os.seteuid(65534)
    try:
        message = refusal(locate(tmp_path / "run", "directory"))
    finally:
        os.seteuid(user)
    assert "access is denied" in message


# Object stores


def test_a_bucket_that_does_not_exist(s3_server: Any) -> None:
    message = refusal(locate("s3://no-such-bucket/run", "directory", s3_server.options))
    assert (
        "cannot write to s3://no-such-bucket/run: the bucket 'no-such-bucket' does not" in message
    )
    assert message.endswith("; create it, or correct its name.")


def test_no_credentials(s3_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = {"endpoint_url": s3_server.endpoint}
    message = refusal(locate("s3://bucket/run", "directory", options))
    assert "no usable credentials were found" in message
    assert "docs/storage.md" in message


@pytest.fixture
def guarded(s3_server: Any) -> Iterator[Any]:
    """A function that returns a folder, and options of a user with the given permissions."""
    iam = s3_server.client("iam")

    def make(*actions: str) -> tuple[str, dict[str, Any]]:
        folder, user = s3_server.folder(), secrets.token_hex(4)
        iam.create_user(UserName=user)
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName=user, PolicyName="some", PolicyDocument=policy)
        key = iam.create_access_key(UserName=user)["AccessKey"]
        requests.post(f"{s3_server.endpoint}/moto-api/reset-auth", data="0", timeout=60)
        return folder.url, {
            "endpoint_url": s3_server.endpoint,
            "key": key["AccessKeyId"],
            "secret": key["SecretAccessKey"],
        }

    yield make
    requests.post(f"{s3_server.endpoint}/moto-api/reset-auth", data="inf", timeout=60)


def test_a_wrong_key_id(guarded: Any) -> None:
    url, options = guarded("s3:*")
    message = refusal(locate(url, "directory", options | {"key": "AKIAHUSHHUSHHUSHHUSH"}))
    assert "the server does not know the access key id" in message
    assert "correct the credentials" in message
    assert "HUSH" not in message


def test_a_wrong_secret(guarded: Any) -> None:
    url, options = guarded("s3:*")
    message = refusal(locate(url, "directory", options | {"secret": "hush-hush"}))
    assert "the secret key does not match the access key id" in message


@pytest.mark.parametrize(
    ("missing", "operation"),
    [
        ("s3:PutObject", "write to"),
        ("s3:GetObject", "read from"),
        ("s3:ListBucket", "list"),
        ("s3:DeleteObject", "remove from"),
    ],
)
def test_each_permission_is_needed(guarded: Any, missing: str, operation: str) -> None:
    actions = {"s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:DeleteObject"}
    url, options = guarded(*(actions - {missing}))
    message = refusal(locate(url, "directory", options))
    assert f"cannot {operation} {url}: access is denied" in message
    assert "ask for the permission, or use other credentials" in message


def test_all_permissions_are_enough(guarded: Any) -> None:
    actions = ("s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:DeleteObject")
    url, options = guarded(*actions)
    check_writable(locate(url, "directory", options), "directory")


def at(endpoint: str, **options: Any) -> Location:
    options = {"endpoint_url": endpoint, "key": "k", "secret": "hush-hush", **options}
    return locate("s3://bucket/run", "directory", options)


@pytest.fixture(autouse=True)
def _short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrib.storage.write_check.RETRY_TIMEOUT", 0.5)


# Otherwise botocore itself tries five times.
ONCE = {"config_kwargs": {"retries": {"max_attempts": 0}}}


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    message = refusal(at(f"http://127.0.0.1:{port}", **ONCE), transient=True)
    assert "the server refuses connections" in message
    assert "start it, or correct the endpoint's address" in message


def test_a_server_name_that_cannot_be_resolved() -> None:
    message = refusal(at("http://no-such-host.invalid", **ONCE), transient=True)
    assert "the server's name cannot be resolved" in message


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        message = refusal(at(f"http://127.0.0.1:{port}"), transient=True, timeout=0.5)
    assert "did not answer within 0.5 s" in message


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that answers every request with one error."""
    status, code = request.param

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # Clients wait for `100 Continue` before the body.

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = f"<Error><Code>{code}</Code><Message>told so</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answering", "cause", "transient"),
    [
        ((400, "ExpiredToken"), "the credentials have expired (told so); renew them.", False),
        ((403, "QuotaExceeded"), "remove what is no longer needed, or raise the quota.", True),
        ((403, "RequestTimeTooSkewed"), "clock differs too much", False),
        ((500, "InternalError"), "the server failed (told so); check its logs.", True),
    ],
    indirect=["answering"],
)
def test_an_error_code_of_the_server(answering: str, cause: str, transient: bool) -> None:
    assert cause in refusal(at(answering, **ONCE), transient)


@pytest.mark.parametrize("answering", [(400, "ExpiredToken")], indirect=True)
def test_credentials_that_an_earlier_attempt_had(
    answering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRIB_WRITTEN_STORES", "s3://bucket")
    message = refusal(at(answering, **ONCE), transient=True)
    assert "renew them. An earlier attempt could write there, so the job waits" in message


def test_a_store_that_loses_writes_is_rejected(
    memory_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = memory_folder.location()
    kind = type(folder.filesystem)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "ls", lambda *_, **__: [])
        assert "does not list what was just written to it" in refusal(folder)
    monkeypatch.setattr(kind, "cat_file", lambda *_: b"something else")
    assert "does not return what was just written to it" in refusal(folder)


def test_a_bucket_of_gcs_that_does_not_exist(
    memory_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is a plain 404, which gcsfs raises as FileNotFoundError."""

    def missing(self: Any, path: str, *_: Any, **__: Any) -> None:
        raise FileNotFoundError(path)

    folder = memory_folder.location()
    monkeypatch.setattr(type(folder.filesystem), "pipe_file", missing)
    assert "the bucket " in refusal(folder)
