"""The proxy injects exactly the faults that a test asks for.

`Server.client()` does not retry, so it sees each fault; s3fs and gcsfs retry.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError, HTTPClientError, ResponseStreamingError
from fault_proxy import Exchange, FaultProxy, Kind, fault_proxy
from stores import Server, free_port, until

BIG = os.urandom(4 << 20)
ALWAYS = float("inf")


@pytest.fixture
def proxy(moto: Server) -> Iterator[FaultProxy]:
    with fault_proxy(moto) as proxy:
        yield proxy


@pytest.fixture
def bucket(moto: Server) -> str:
    return moto.bucket().removeprefix("s3://")


def put(server: Server, bucket: str, key: str = "key", body: bytes = BIG) -> None:
    server.client().put_object(Bucket=bucket, Key=key, Body=body)


def get(server: Server, bucket: str, key: str = "key") -> bytes:
    return bytes(server.client().get_object(Bucket=bucket, Key=key)["Body"].read())


def exists(server: Server, bucket: str, key: str = "key") -> bool:
    listed = server.client().list_objects_v2(Bucket=bucket, Prefix=key)
    return bool(listed["KeyCount"])


@contextmanager
def in_background(action: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(action)


def test_a_reset_in_an_upload(ceph: Server) -> None:
    with fault_proxy(ceph) as proxy:
        bucket = ceph.bucket().removeprefix("s3://")
        fault = proxy.fail("reset", after_bytes=1 << 20)
        with pytest.raises(HTTPClientError):
            put(proxy.server, bucket)
        [exchange] = proxy.log
        assert 0 < exchange.sent < 1 << 20
        assert replace(exchange, sent=0) == Exchange("PUT", f"/{bucket}/key", fault="reset")
        assert fault.struck == 1
        assert not exists(ceph, bucket)
        proxy.fail("reset", after_bytes=1 << 20)
        proxy.server.filesystem().pipe_file(f"{bucket}/key", BIG)
        assert [one.status for one in proxy.exchanges("PUT")] == [None, None, 200]
        assert get(ceph, bucket) == BIG


def test_a_reset_in_a_download(proxy: FaultProxy, moto: Server, bucket: str) -> None:
    put(moto, bucket)
    proxy.fail("reset", match="GET", after_bytes=1 << 20)
    with pytest.raises(ResponseStreamingError):
        get(proxy.server, bucket)
    assert 0 < proxy.log[0].received < 1 << 20
    proxy.fail("reset", match="GET", after_bytes=1 << 20)
    assert proxy.server.filesystem().cat_file(f"{bucket}/key") == BIG
    assert [one.fault for one in proxy.exchanges("GET")] == ["reset", "reset", None]


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("503", 503, "SlowDown"),
        ("403", 403, "AccessDenied"),
        ("expired token", 400, "ExpiredToken"),
    ],
)
def test_refusals(
    kind: Kind, status: int, code: str, proxy: FaultProxy, moto: Server, bucket: str
) -> None:
    proxy.fail(kind)
    with pytest.raises(ClientError) as raised:
        put(proxy.server, bucket)
    assert raised.value.response["Error"]["Code"] == code
    assert proxy.log == [Exchange("PUT", f"/{bucket}/key", status, fault=kind)]
    assert not exists(moto, bucket)


def test_how_s3fs_reports_refusals(proxy: FaultProxy, bucket: str) -> None:
    filesystem = proxy.server.filesystem()
    for kind in ("403", "expired token"):
        proxy.fail(kind)
        with pytest.raises(PermissionError):
            filesystem.pipe_file(f"{bucket}/key", b"")
    proxy.fail("503")
    filesystem.pipe_file(f"{bucket}/key", b"")
    assert [one.status for one in proxy.log] == [403, 400, 503, 200]


def test_a_lost_response(proxy: FaultProxy, moto: Server, bucket: str) -> None:
    proxy.fail("lost response")
    with pytest.raises(HTTPClientError):
        put(proxy.server, bucket)
    assert proxy.log == [
        Exchange("PUT", f"/{bucket}/key", sent=len(BIG), fault="lost response"),
    ]
    assert get(moto, bucket) == BIG


def test_a_create_with_a_lost_response_raises_file_exists(
    proxy: FaultProxy, moto: Server, bucket: str
) -> None:
    proxy.fail("lost response")
    with pytest.raises(FileExistsError):
        proxy.server.filesystem().pipe_file(f"{bucket}/key", b"mine", mode="create")
    assert [one.status for one in proxy.log] == [None, 412]
    assert get(moto, bucket) == b"mine"


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "hang"},
        {"kind": "hang", "after_bytes": 1 << 20},
        {"kind": "slow", "delay": 600},
        {"kind": "slow", "bytes_per_second": 1000},
        {"kind": "slow", "bytes_per_second": 1000, "after_bytes": 1 << 20},
    ],
)
def test_hanging_and_slow_uploads_continue_after_heal(
    options: dict[str, Any], proxy: FaultProxy, moto: Server, bucket: str
) -> None:
    fault = proxy.fail(**options)
    with in_background(lambda: put(proxy.server, bucket)) as done:
        try:
            until(lambda: fault.struck)
            [exchange] = proxy.log
            assert exchange.sent <= options.get("after_bytes", 0)
            assert bool(exchange.sent) == bool(options.get("after_bytes"))
            assert not exists(moto, bucket)
            assert not done.done()
        finally:
            proxy.heal()
    done.result()
    assert (exchange.status, exchange.sent) == (200, len(BIG))
    assert exchange.fault == options["kind"]
    assert get(moto, bucket) == BIG


def test_a_slow_download(proxy: FaultProxy, moto: Server, bucket: str) -> None:
    put(moto, bucket)
    fault = proxy.fail("slow", match="GET", bytes_per_second=1000)
    with in_background(lambda: get(proxy.server, bucket)) as done:
        try:
            until(lambda: fault.struck)
            assert proxy.log[0].received < len(BIG)
            assert not done.done()
        finally:
            proxy.heal()
    assert done.result() == BIG


def test_a_fault_hits_the_given_number_of_matching_requests(proxy: FaultProxy, bucket: str) -> None:
    fault = proxy.fail("403", match="PUT .*/runs/", skip=1, times=2)

    def statuses(key: str, number: int) -> list[int]:
        for _ in range(number):
            try:
                put(proxy.server, bucket, key, b"")
            except ClientError:
                continue
        return [one.status or 0 for one in proxy.exchanges(f"/{key}$")]

    assert statuses("other", 2) == [200, 200]
    assert statuses("runs/17", 4) == [200, 403, 403, 200]
    assert fault.struck == 2
    proxy.fail("403", times=ALWAYS)
    proxy.fail("503", times=ALWAYS)
    assert statuses("more", 2) == [403, 403]
    proxy.heal()
    assert statuses("more", 1) == [403, 403, 200]


def test_a_request_that_ends_before_the_fault_does_not_count(
    proxy: FaultProxy, bucket: str
) -> None:
    fault = proxy.fail("reset", after_bytes=1 << 20)
    put(proxy.server, bucket, body=b"short")
    assert fault.struck == 0
    with pytest.raises(HTTPClientError):
        put(proxy.server, bucket)
    put(proxy.server, bucket)
    assert [one.fault for one in proxy.log] == [None, "reset", None]


def test_of_concurrent_requests_only_one_is_hit(proxy: FaultProxy, bucket: str) -> None:
    fault = proxy.fail("reset", after_bytes=2)
    connections = [HTTPConnection(proxy.server.endpoint.removeprefix("http://")) for _ in "ab"]
    for connection in connections:
        connection.putrequest("PUT", f"/{bucket}/key")
        connection.putheader("Content-Length", "2")
        connection.endheaders(b"1")
    until(lambda: [one.sent for one in proxy.log] == [1, 1])
    for connection in connections:
        connection.send(b"2")
    until(lambda: None not in [one.status or one.fault for one in proxy.log])
    assert {one.status for one in proxy.log} == {None, 200}
    assert fault.struck == 1


def test_a_dead_server_looks_dead_through_the_proxy(moto: Server) -> None:
    with (
        fault_proxy(moto.at(f"http://127.0.0.1:{free_port()}")) as proxy,
        pytest.raises(HTTPClientError),
    ):
        put(proxy.server, "bucket")


def test_faults_of_gcs(gcs: Server) -> None:
    with fault_proxy(gcs) as proxy:
        path = f"{gcs.bucket()}/key"
        filesystem = proxy.server.filesystem()
        proxy.fail("reset", match="POST", after_bytes=1 << 20)
        proxy.fail("503", match="POST")
        filesystem.pipe_file(path, BIG)
        assert [one.fault for one in proxy.exchanges("POST")] == ["reset", "503", None]
        proxy.fail("403", match="POST")
        with pytest.raises(OSError, match=r"(?s)Forbidden.*storage\.objects\.create"):
            filesystem.pipe_file(path, b"")
    assert gcs.filesystem().cat_file(path) == BIG


@pytest.mark.parametrize(("kind", "status"), [("503", 503), ("403", 403), ("expired token", 401)])
def test_refusals_of_gcs(kind: Kind, status: int, gcs: Server) -> None:
    with fault_proxy(gcs) as proxy:
        proxy.fail(kind)
        answer = requests.get(f"{proxy.server.endpoint}/storage/v1/b?project=test", timeout=20)
        assert answer.status_code == answer.json()["error"]["code"] == status
