"""Object store servers on this machine, for tests that need more than a mock.

| fixture | server | data after `kill9()` | exclusive create |
|---|---|---|---|
| `ceph` | Ceph's S3 gateway over one disk | kept | exact; s3fs turns 412 into EINVAL |
| `moto` | an S3 server in Python | lost | exact |
| `gcs` | a GCS emulator in Python | kept | exact, see `gcs_emulator.py` |

A test names one of them and gets a `Server`:

    def test_something(ceph):
        url = ceph.bucket() + "/runs/17"
        BackupAndRestore(url, storage_options=ceph.storage_options)  # in this process
        subprocess.run([*command, url], env=os.environ | ceph.environment)  # in another

A server starts for the first test that uses it, serves all tests of this process, and is killed by
the kernel when the process dies. So a test has a new bucket but no empty server, and a test that
kills a server must start it again.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
import fsspec
import requests
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

KEY, SECRET = "AKIDTEST", "SECRETSECRETTEST"
START_TIMEOUT = 60.0


class Daemon:
    """A process of a server. The kernel kills it when the thread that started it ends."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command, self.log = command, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill9(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class Server:
    """A running object store.

    Attributes:
        protocol: `"s3"` or `"gs"`.
        endpoint: `http://127.0.0.1:PORT`.
        daemons: The server's processes, in the order of their start.
        secret: Of the key; only Ceph rejects a wrong one.
    """

    protocol: str
    endpoint: str
    daemons: Mapping[str, Daemon] = field(repr=False)
    secret: str = SECRET

    @property
    def storage_options(self) -> dict[str, Any]:
        """The options with which s3fs or gcsfs finds the server."""
        if self.protocol == "s3":
            return {"endpoint_url": self.endpoint, "key": KEY, "secret": self.secret}
        return {"endpoint_url": self.endpoint, "token": "anon"}

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a process finds the server without options."""
        if self.protocol == "s3":
            return {
                "AWS_ENDPOINT_URL": self.endpoint,
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": self.secret,
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        return {
            "STORAGE_EMULATOR_HOST": self.endpoint,
            "FSSPEC_GCS_TOKEN": "anon",
            # fsspec reads the variables above at its import. This one leads to "anon" as well.
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # See conftest.py.
        }

    def bucket(self) -> str:
        """Create a bucket, and return its URL."""
        name = f"test-{secrets.token_hex(6)}"
        if self.protocol == "s3":
            self.client().create_bucket(Bucket=name)
        else:
            self._gcs("POST", json={"name": name}).raise_for_status()
        return f"{self.protocol}://{name}"

    def filesystem(self) -> Any:
        """Return a new fsspec file system without caches."""
        return fsspec.filesystem(
            self.protocol,
            skip_instance_cache=True,
            use_listings_cache=False,
            **self.storage_options,
        )

    def client(self) -> Any:
        """Return a boto3 client without retries."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 0}, connect_timeout=5, read_timeout=20),
        )

    def at(self, endpoint: str) -> Server:
        """Return the same server at another address, such as a proxy's."""
        return replace(self, endpoint=endpoint)

    def start(self) -> None:
        """Start all processes that are not running, and wait until the server answers."""
        for daemon in self.daemons.values():
            if not daemon.alive:
                daemon.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            for name, daemon in self.daemons.items():
                if not daemon.alive or time.monotonic() > deadline:
                    log = daemon.log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{name} does not run:\n{log}")
            time.sleep(0.02)

    def kill9(self, *names: str) -> None:
        """Kill some or all processes; `start()` restarts them at the same address."""
        for name in names or self.daemons:
            self.daemons[name].kill9()

    def _answers(self) -> bool:
        try:
            if self.protocol == "s3":
                self.client().list_buckets()
            else:
                self._gcs("GET").raise_for_status()
        except (BotoCoreError, ClientError, requests.RequestException):
            return False
        return True

    def _gcs(self, method: str, **content: Any) -> requests.Response:
        url = f"{self.endpoint}/storage/v1/b?project=test"
        return requests.request(method, url, timeout=20, **content)


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true, for up to 30 s."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_moto(folder: Path) -> Server:
    port = free_port()
    program = "from moto.server import main; main()"
    command = [sys.executable, "-P", "-c", program, "-H", "127.0.0.1", "-p", str(port)]
    return _started("s3", port, Daemon(command, folder / "moto.log"))


def start_gcs(folder: Path) -> Server:
    port = free_port()
    script = str(Path(__file__).with_name("gcs_emulator.py"))
    command = [sys.executable, script, str(port), str(folder / "data")]
    return _started("gs", port, Daemon(command, folder / "gcs.log"))


def _started(protocol: str, port: int, daemon: Daemon) -> Server:
    server = Server(protocol, f"http://127.0.0.1:{port}", {"server": daemon})
    server.start()
    return server
