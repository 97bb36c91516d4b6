"""The servers that other tests rely on, and the proxy before them, do what they claim.

`Server.client()` tries once, so it sees each fault as it is; s3fs and gcsfs try again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from errno import EINVAL
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, HTTPClientError, ResponseStreamingError
from fault_proxy import Exchange, FaultProxy, Kind, fault_proxy
from stores import Server, free_port

BIG = os.urandom(4 << 20)
FOREVER = float("inf")


@pytest.fixture(params=["ceph", "moto", "gcs"])
def server(request: pytest.FixtureRequest) -> Server:
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Server)
    return made


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


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def doing(action: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(action)


def test_what_is_put_is_there_also_through_a_proxy(server: Server) -> None:
    """The S3 servers check signatures, which cover the address that the client has used."""
    with fault_proxy(server) as proxy:
        folder = f"{proxy.server.bucket()}/runs/a b+c=ü!(d)%20%2F"
        made = len(proxy.log)
        filesystem = proxy.server.filesystem()
        filesystem.pipe_file(f"{folder}/big", BIG)
        filesystem.pipe_file(f"{folder}/none", b"")
        direct = server.filesystem()
        for one in (filesystem, direct):
            assert one.cat_file(f"{folder}/big") == BIG
            assert one.cat_file(f"{folder}/none") == b""
            assert one.cat_file(f"{folder}/big", start=1000, end=1010) == BIG[1000:1010]
            assert [name.split("/")[-1] for name in sorted(one.ls(folder, detail=False))] == [
                "big",
                "none",
            ]
        filesystem.rm_file(f"{folder}/big")
        assert not direct.exists(f"{folder}/big")
        assert not filesystem.exists(f"{folder}/big")
        [upload] = [one for one in proxy.log[made:] if one.sent >= len(BIG)]
        assert (upload.status, upload.fault) == (200, None)
        assert any(one.received == len(BIG) for one in proxy.exchanges("^GET .*big"))


def test_ceph_refuses_a_wrong_signature(ceph: Server) -> None:
    with pytest.raises(PermissionError):
        replace(ceph, secret="wrong").filesystem().pipe_file(f"{ceph.bucket()}/key", b"")


def test_one_of_many_creators_wins(server: Server) -> None:
    path = f"{server.bucket()}/leader"
    filesystems = [server.filesystem() for _ in range(8)]

    def create(number: int) -> bool:
        try:
            filesystems[number].pipe_file(path, b"%d" % number, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or error.errno == EINVAL:  # On Ceph.
                return False
            raise
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [number for number, created in enumerate(pool.map(create, range(8))) if created]
    assert len(won) == 1
    assert server.filesystem().cat_file(path) == b"%d" % won[0]


@pytest.mark.parametrize("names", [("client.rgw",), ("osd.0",), ("mon.a",), ()])
def test_ceph_keeps_what_it_has_acknowledged(ceph: Server, names: tuple[str, ...]) -> None:
    bucket = ceph.bucket().removeprefix("s3://")
    put(ceph, bucket)
    ceph.kill9(*names)
    ceph.start()
    assert get(ceph, bucket) == BIG
    put(ceph, bucket, "other")


def test_gcs_keeps_what_it_has_acknowledged(gcs: Server) -> None:
    path = f"{gcs.bucket()}/key"
    gcs.filesystem().pipe_file(path, BIG)
    gcs.kill9()
    gcs.start()
    assert gcs.filesystem().cat_file(path) == BIG


def test_moto_forgets(moto: Server) -> None:
    bucket = moto.bucket()
    moto.kill9()
    moto.start()
    assert not moto.filesystem().exists(bucket)


def test_a_process_finds_a_server_by_its_environment_alone(server: Server) -> None:
    with fault_proxy(server) as proxy:
        path = f"{proxy.server.bucket()}/key"
        program = "import fsspec, sys; fsspec.open(sys.argv[1], 'wb').open().close()"
        environment = os.environ | proxy.server.environment
        subprocess.run([sys.executable, "-P", "-c", program, path], env=environment, check=True)
        assert proxy.exchanges("(PUT|POST) .*(key|upload)")
    assert server.filesystem().exists(path)


def test_a_daemon_dies_with_its_process(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; sys.path.insert(0, sys.argv[1]); import stores\n"
        "daemon = stores.Daemon(['sleep', '600'], pathlib.Path(sys.argv[2]))\n"
        "daemon.start(); print(daemon.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-P", "-c", program, str(Path(__file__).parent), tmp_path / "log"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    daemon = Path("/proc") / process.stdout.readline().decode().strip()
    until(lambda: b"sleep" in (daemon / "cmdline").read_bytes().split(b"\0")[:1])
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not daemon.exists() or "(zombie)" in (daemon / "status").read_text())


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


def test_what_s3fs_makes_of_refusals(proxy: FaultProxy, bucket: str) -> None:
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


def test_a_create_whose_response_is_lost_is_told_that_it_exists(
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
def test_hanging_and_slow_uploads_arrive_when_it_is_healed(
    options: dict[str, Any], proxy: FaultProxy, moto: Server, bucket: str
) -> None:
    fault = proxy.fail(**options)
    with doing(lambda: put(proxy.server, bucket)) as done:
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
    with doing(lambda: get(proxy.server, bucket)) as done:
        try:
            until(lambda: fault.struck)
            assert proxy.log[0].received < len(BIG)
            assert not done.done()
        finally:
            proxy.heal()
    assert done.result() == BIG


def test_faults_strike_what_they_match_as_often_as_they_are_told(
    proxy: FaultProxy, bucket: str
) -> None:
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
    proxy.fail("403", times=FOREVER)
    proxy.fail("503", times=FOREVER)
    assert statuses("more", 2) == [403, 403]
    proxy.heal()
    assert statuses("more", 1) == [403, 403, 200]


def test_a_request_that_ends_before_the_fault_does_not_use_it_up(
    proxy: FaultProxy, bucket: str
) -> None:
    fault = proxy.fail("reset", after_bytes=1 << 20)
    put(proxy.server, bucket, body=b"short")
    assert fault.struck == 0
    with pytest.raises(HTTPClientError):
        put(proxy.server, bucket)
    put(proxy.server, bucket)
    assert [one.fault for one in proxy.log] == [None, "reset", None]


def test_a_server_that_is_gone_is_gone_through_the_proxy_too(moto: Server) -> None:
    with (
        fault_proxy(moto.at(f"http://127.0.0.1:{free_port()}")) as proxy,
        pytest.raises(HTTPClientError),
    ):
        put(proxy.server, "bucket")


def test_faults_on_the_way_to_gcs(gcs: Server) -> None:
    with fault_proxy(gcs) as proxy:
        path = f"{gcs.bucket()}/key"
        filesystem = proxy.server.filesystem()
        proxy.fail("reset", match="POST", after_bytes=1 << 20)
        proxy.fail("503", match="POST")
        filesystem.pipe_file(path, BIG)
        assert [one.fault for one in proxy.exchanges("POST")] == ["reset", "503", None]
        proxy.fail("403", match="POST")
        with pytest.raises(OSError, match="AccessDenied"):
            filesystem.pipe_file(path, b"")
    assert gcs.filesystem().cat_file(path) == BIG
