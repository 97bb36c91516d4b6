"""The servers of other tests behave as `stores.py` says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from errno import EINVAL
from pathlib import Path

import pytest
from fault_proxy import fault_proxy
from stores import Server, until

BIG = os.urandom(4 << 20)


def test_requests_pass_through_a_proxy(server: Server) -> None:
    """The S3 servers check signatures, which cover the address that the client used."""
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
            names = [name.split("/")[-1] for name in one.ls(folder, detail=False)]
            assert sorted(names) == ["big", "none"]
        filesystem.rm_file(f"{folder}/big")
        assert not direct.exists(f"{folder}/big")
        assert not filesystem.exists(f"{folder}/big")
        [upload] = [one for one in proxy.log[made:] if one.sent >= len(BIG)]
        assert (upload.status, upload.fault) == (200, None)
        assert any(one.received == len(BIG) for one in proxy.exchanges("^GET .*big"))


def test_ceph_rejects_a_wrong_signature(ceph: Server) -> None:
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
def test_ceph_keeps_acknowledged_writes(ceph: Server, names: tuple[str, ...]) -> None:
    path = f"{ceph.bucket()}/key"
    ceph.filesystem().pipe_file(path, BIG)
    ceph.kill9(*names)
    ceph.start()
    assert ceph.filesystem().cat_file(path) == BIG
    ceph.filesystem().pipe_file(path, b"")


def test_gcs_keeps_acknowledged_writes(gcs: Server) -> None:
    path = f"{gcs.bucket()}/key"
    gcs.filesystem().pipe_file(path, BIG)
    gcs.kill9()
    gcs.start()
    assert gcs.filesystem().cat_file(path) == BIG


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\r\n--==0==", b""])
def test_every_byte_is_kept(server: Server, end: bytes) -> None:
    path = f"{server.bucket()}/key"
    server.filesystem().pipe_file(path, b"\n\r" + end)
    assert server.filesystem().cat_file(path) == b"\n\r" + end


def test_moto_loses_its_data(moto: Server) -> None:
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
    arguments = [str(Path(__file__).parent), str(tmp_path / "log")]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program, *arguments], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    daemon = Path("/proc") / process.stdout.readline().decode().strip()
    until(lambda: b"sleep" in (daemon / "cmdline").read_bytes().split(b"\0")[:1])
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not daemon.exists() or "(zombie)" in (daemon / "status").read_text())
