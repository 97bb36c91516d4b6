"""`distrib doctor` on machines with planted faults, and on one without."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import hosts as rig
import pytest
from stores import Server

DOCTOR = [sys.executable, "-P", "-m", "distrib.launch.cli", "doctor"]


def examine(
    *arguments: str, files: int = 4096, **variables: str
) -> tuple[int, list[Mapping[str, str]]]:
    """Return the exit code, and the findings that are not ok, with a hard limit of open files."""
    done = subprocess.run(
        [*DOCTOR, "--json", *arguments],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, [each for each in findings if each["level"] != "ok"]


def test_planted_faults_are_found_and_nothing_else(tmp_path: Path) -> None:
    old = tmp_path / "packages" / "s3fs-2020.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: s3fs\nVersion: 2020.1\n")
    (tmp_path / "file").touch()
    store = str(tmp_path / "file" / "run")
    with socket.create_server(("", 7600), reuse_port=False):
        code, findings = examine(
            *("-H", "localhost:1,no-such-host.invalid:1", store),
            files=256,
            PYTHONPATH=f"{old.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '/none')}",
            KERAS_BACKEND="jax",
        )
    assert code == 2
    assert [(each["level"], each["subject"]) for each in findings] == [
        ("problem", "s3fs"),
        ("problem", "Keras"),
        ("warning", "open files"),
        ("warning", "--join"),
        ("problem", "hosts"),
        ("problem", store),
    ]
    assert all(each["remedy"] for each in findings)


def test_a_sound_machine_and_store(server: Server) -> None:
    url = f"{server.bucket()}/run"
    code, findings = examine(url, **server.environment)
    assert findings == []
    assert code == 0
    assert list(server.filesystem().find(url)) == []


@pytest.mark.skipif(rig.missing() is not None, reason=str(rig.missing()))
def test_hosts_by_ssh(tmp_path: Path) -> None:
    folder = tmp_path / "hosts"
    folder.mkdir()
    with rig.hosts(folder, count=2) as (first, _), (tmp_path / "out").open("wb") as out:
        job = first.start([*DOCTOR, "-H", "h0:1,h1:1"], stdout=out, cwd=tmp_path)
        assert job.wait(120) in (0, 1)
    (line,) = (each for each in (tmp_path / "out").read_text().splitlines() if " h1 " in each)
    assert line.startswith("ok       h1              answers by ssh, at 10.77.0.2")
