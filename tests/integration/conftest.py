from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# gcsfs reads this variable on import, here and in processes that tests start. Without it each call
# looks for a gRPC server for a minute.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

from ceph import missing, start_ceph
from stores import Server, start_gcs, start_moto


@pytest.fixture(scope="module", params=["horovod", "multiworker"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend with several ranks, unless a test names one."""
    if request.param == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")
    return str(request.param)


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    yield from _running(start_ceph, tmp_path_factory.mktemp("ceph"))


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(start_moto, tmp_path_factory.mktemp("moto"))


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running(start_gcs, tmp_path_factory.mktemp("gcs"))


@pytest.fixture(params=["ceph", "moto", "gcs"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each object store."""
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Server)
    return made


def _running(start: Callable[[Path], Server], folder: Path) -> Iterator[Server]:
    server = start(folder)
    yield server
    server.kill9()
    shutil.rmtree(folder)  # Pytest keeps folders, and the store may hold gigabytes.
