"""Credentials that expire during a job, and are renewed while it is being started again.

The rank is a small one without TensorFlow; launcher, store and file systems are the real ones.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Kind, fault_proxy
from stores import Server

from distrib.errors import EXIT_CONFIGURATION, EXIT_FINISHED

# In its first attempt it waits to be killed; a later one finishes.
RANK = """
import os, signal, sys, time
from distrib.errors import install_exit_codes
from distrib.heartbeat import heartbeat
from distrib.storage.locate import locate
from distrib.storage.write_check import check_writable
install_exit_codes()
open(sys.argv[2] + "/attempts", "a").write("x")
check_writable(locate(sys.argv[1], "directory"), "directory")
found = os.path.exists(sys.argv[2] + "/expired")
heartbeat.begin_run(sys.argv[1], 5 if found else 0, found)
heartbeat.committed(5)
open(sys.argv[2] + "/written", "w").close()
while not os.path.exists(sys.argv[2] + "/expired"):
    time.sleep(0.05)
if "DISTRIB_WRITTEN_STORES" in os.environ and not os.environ["DISTRIB_WRITTEN_STORES"]:
    os.kill(os.getpid(), signal.SIGKILL)
heartbeat.end_run()
"""
ALWAYS = float("inf")


@pytest.fixture(params=["moto", pytest.param("gcs", marks=pytest.mark.exhaustive)])
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    server: Server = request.getfixturevalue(request.param)
    with fault_proxy(server) as proxy:
        for name, value in proxy.server.environment.items():
            monkeypatch.setenv(name, value)
        yield proxy


def begin(proxy: FaultProxy, folder: Path) -> subprocess.Popen[str]:
    (folder / "rank.py").write_text(RANK)
    launch = "import sys; from distrib.launch.cli import main; sys.exit(main())"
    options = ["run", "-np", "1", "--backend", "multiworker", str(folder / "rank.py")]
    url = f"{proxy.server.bucket()}/runs/17"
    command = [sys.executable, "-P", "-c", launch, *options, url, str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(happened: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    while not happened():
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.05)


@pytest.mark.parametrize(
    "kind", ["expired token", pytest.param("403", marks=pytest.mark.exhaustive)]
)
def test_expired_credentials_are_waited_for(kind: Kind, proxy: FaultProxy, tmp_path: Path) -> None:
    job = begin(proxy, tmp_path)
    wait_for((tmp_path / "written").exists, job)
    proxy.fail(kind, times=ALWAYS)
    (tmp_path / "expired").touch()
    attempts = tmp_path / "attempts"
    wait_for(lambda: attempts.stat().st_size == 3, job)  # The second one was refused.
    proxy.heal()
    errors = job.communicate(timeout=60)[1]
    assert job.returncode == EXIT_FINISHED, errors
    assert "An earlier attempt could write there, so the job waits for new credentials." in errors


def test_credentials_that_never_worked_end_the_job(proxy: FaultProxy, tmp_path: Path) -> None:
    job = begin(proxy, tmp_path)
    proxy.fail("expired token", times=ALWAYS)
    errors = job.communicate(timeout=60)[1]
    assert job.returncode == EXIT_CONFIGURATION, errors
    assert (tmp_path / "attempts").read_text() == "x"
