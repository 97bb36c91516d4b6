from __future__ import annotations

import errno
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import botocore.exceptions
import pytest
from gcsfs.retry import ChecksumError, HttpError, validate_response
from s3fs.errors import translate_boto_error

from distrib.storage.errors import ERROR_KINDS, UNKNOWN, StorageError, classify, retry
from distrib.storage.locate import locate
from distrib.storage.location import describe_error

LOCATION = locate(
    "s3://bucket/runs/17",
    "directory",
    {
        "key": "the-key-id",
        "secret": "hush-hush",
        "token": {"inner": "whisper"},
        "client_kwargs": {"aws_session_token": "psst!"},
    },
)


def s3(code: str, status: int = 400, message: str = "said the server") -> Exception:
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return translate_boto_error(botocore.exceptions.ClientError(response, "PutObject"))


def gcs(status: int, message: str = "said the server") -> Exception:
    try:
        validate_response(status, f'{{"error": {{"message": "{message}"}}}}', "b/bucket/o/x")
    except Exception as error:
        return error
    raise AssertionError("no error")


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


PERMANENT: list[tuple[Exception, str]] = [
    (s3("NoSuchBucket", 404), "the bucket 'bucket' does not exist"),
    (s3("InvalidAccessKeyId", 403), "does not know the access key id"),
    (s3("SignatureDoesNotMatch", 403), "the secret key does not match"),
    (s3("ExpiredToken"), "the credentials have expired"),
    (s3("RequestTimeTooSkewed", 403), "this machine's clock"),
    (s3("QuotaExceeded", 403), "the quota is used up"),
    (s3("AccessDenied", 403), "access is denied"),
    (s3("403", 403), "access is denied"),  # To HEAD, which has no body.
    (s3("NoSuchKey", 404), "it does not exist"),
    (s3("PermanentRedirect", 301), "in another region"),
    (s3("PreconditionFailed", 412), "exists already"),
    (gcs(403), "access is denied"),
    (gcs(401), "does not accept the credentials"),
    (gcs(404), "it does not exist"),
    (gcs(412), "exists already"),
    (botocore.exceptions.NoCredentialsError(), "no usable credentials were found"),
    (os_error(errno.ENOSPC), "no space is left"),
    (os_error(errno.EDQUOT), "the quota is used up"),
    (os_error(errno.EROFS), "the file system is read-only"),
    (os_error(errno.EACCES), "access is denied"),
    (os_error(errno.ENOTDIR), "a file exists where a folder should be"),
    (os_error(errno.ENOENT), "it does not exist"),
    (os_error(errno.ENAMETOOLONG), "the name is too long"),
    (ValueError("a bug"), "the store failed"),
]
TRANSIENT: list[tuple[Exception, str]] = [
    (s3("SlowDown", 503), "the server is overloaded"),
    (s3("ServiceUnavailable", 503), "the server is overloaded"),
    (s3("Strange", 503), "the server is overloaded"),
    (s3("ConditionalRequestConflict", 409), "the server is overloaded"),
    (s3("InternalError", 500), "the server failed"),
    (s3("RequestTimeout"), "did not answer in time"),
    (gcs(429), "the server is overloaded"),
    (gcs(500), "the server failed"),
    (gcs(502), "the server failed"),
    (gcs(503), "the server is overloaded"),
    (HttpError({"code": 504, "message": ""}), "did not answer in time"),
    (ChecksumError("md5"), "the server failed"),
    (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), "cannot be reached"),
    (botocore.exceptions.ConnectTimeoutError(endpoint_url="http://x"), "did not answer in time"),
    (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), "did not answer in time"),
    (botocore.exceptions.ConnectionClosedError(endpoint_url="x"), "the connection was lost"),
    (botocore.exceptions.ResponseStreamingError(error="x"), "the connection was lost"),
    (aiohttp.ServerDisconnectedError(), "the connection was lost"),
    (aiohttp.ClientPayloadError("not all"), "the connection was lost"),
    (os_error(errno.ECONNRESET), "the connection was lost"),
    (os_error(errno.EPIPE), "the connection was lost"),
    (os_error(errno.ECONNREFUSED), "the server refuses connections"),
    (TimeoutError(), "did not answer in time"),
]


@pytest.mark.parametrize(("error", "cause"), PERMANENT + TRANSIENT, ids=repr)
def test_every_error_has_a_cause_in_plain_words(error: Exception, cause: str) -> None:
    assert cause in describe_error(error, LOCATION)


@pytest.mark.parametrize("error", [error for error, _ in PERMANENT], ids=repr)
def test_permanent_errors_are_not_retried(error: Exception) -> None:
    calls = []

    def operation() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        retry(operation)
    assert caught.value is error
    assert calls == [1]


@pytest.mark.parametrize("error", [error for error, _ in TRANSIENT], ids=repr)
def test_transient_errors_are_retried(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrib.storage.errors._FIRST_BACKOFF", 0.0)
    failures = [error] * 3

    def operation() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert retry(operation) == "done"


def test_retries_end_at_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("distrib.storage.errors.time.monotonic", lambda: now[0])
    monkeypatch.setattr("distrib.storage.errors.time.sleep", sleep)

    def operation() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        retry(operation, timeout=60.0)
    assert 50.0 < now[0] <= 60.0
    assert all(0.1 * 2**n <= pause <= 0.2 * 2**n for n, pause in enumerate(pauses[:5]))
    assert max(pauses) <= 10.0
    pauses.clear()
    with pytest.raises(TimeoutError):
        retry(operation, timeout=0.0)
    assert pauses == []


def test_the_cause_of_the_cause_is_classified() -> None:
    outer = StorageError("s3://bucket: ...")
    outer.__cause__ = s3("ExpiredToken")
    assert describe_error(outer, LOCATION) == "the credentials have expired (said the server)"
    hidden = ValueError("x")
    hidden.__context__, hidden.__suppress_context__ = s3("ExpiredToken"), True
    assert classify(hidden) is UNKNOWN


def test_secrets_are_redacted_and_only_one_line_is_shown() -> None:
    message = "at http://me:word@host with the-key-id, hush-hush, whisper and psst!\nand more"
    assert describe_error(ValueError(message), LOCATION) == (
        "the store failed (at http://***@host with ***, ***, *** and ***)"
    )
    assert len(describe_error(ValueError("x" * 1000), LOCATION)) < 300


def test_every_code_is_in_the_table_once() -> None:
    codes = [code for kind in ERROR_KINDS for code in kind.codes]
    assert len(codes) == len(set(codes))


@contextmanager
def forwarding(port: int, to: int) -> Iterator[None]:
    """Forward connections from `port` to another port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", to)) as server:
                back = threading.Thread(target=copy, args=(server.recv, self.request.sendall))
                back.start()
                copy(self.request.recv, server.sendall)
                server.shutdown(socket.SHUT_WR)
                back.join()

    def copy(receive: Callable[[int], bytes], send: Callable[[bytes], Any]) -> None:
        while data := receive(1 << 16):
            send(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_a_server_that_is_down_for_a_while_is_retried(s3_server: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    remote = s3_server.folder()
    elsewhere = {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "config_kwargs": {"retries": {"max_attempts": 0}},  # Otherwise botocore itself retries.
    }
    location = locate(f"{remote.url}/x", "directory", remote.options | elsewhere)
    has_failed = threading.Event()

    def write() -> None:
        try:
            location.filesystem.pipe_file(location.path, b"content")
        except botocore.exceptions.EndpointConnectionError:
            has_failed.set()
            raise

    writer = threading.Thread(target=retry, args=(write,))
    writer.start()
    assert has_failed.wait(60)
    with forwarding(port, urlsplit(s3_server.endpoint).port or 0):
        writer.join()
    assert (remote.location() / "x").read_bytes() == b"content"
