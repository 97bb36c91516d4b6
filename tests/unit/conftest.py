"""Places outside the local disk: a real S3 server of our own on loopback, and fsspec's memory.

And what AutoGraph does, behind TensorFlow's public API.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distrib.storage.locate import locate
from distrib.storage.location import Location

# It ends when its standard input does, which the death of the test process brings about too.
SERVER = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from moto.server import main
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


@dataclass(frozen=True)
class Remote:
    """A folder that is not on the local disk.

    Attributes:
        url: Of the folder.
        options: The `storage_options` that reach it.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def location(self) -> Location:
        return locate(self.url, "directory", self.options)

    def contents(self) -> dict[str, bytes]:
        """All files below the folder, read by plain fsspec."""
        place = self.location()
        place.filesystem.invalidate_cache()
        return {
            path.strip("/").removeprefix(place.path.strip("/") + "/"): place.filesystem.cat_file(
                path
            )
            for path in place.filesystem.find(place.path)
        }


@dataclass(frozen=True)
class S3Server:
    """A moto server."""

    endpoint: str

    @property
    def options(self) -> dict[str, Any]:
        return {"endpoint_url": self.endpoint, "key": "test-key-id", "secret": "test-secret"}

    def client(self, service: str = "s3") -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test-key-id",
            aws_secret_access_key="test-secret",
        )

    def bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name

    def folder(self) -> Remote:
        return Remote(f"s3://{self.bucket()}/runs/17", self.options)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def memory_folder() -> Iterator[Remote]:
    yield Remote(f"memory://{secrets.token_hex(6)}/runs/17")
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest) -> Remote:
    """An empty folder, once in each kind of store."""
    if request.param == "memory":
        return request.getfixturevalue("memory_folder")
    return request.getfixturevalue("s3_server").folder()


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions that AutoGraph converts from now on, which takes long."""
    from tensorflow.python.autograph.impl import api

    functions, convert = [], api._convert_actual

    def note(function: Any, context: Any) -> Any:
        functions.append(function)
        return convert(function, context)

    monkeypatch.setattr(api, "_convert_actual", note)
    return functions
