"""A training job on three hosts that loses one of them: switched off, or cut off.

The other ranks must notice in both cases, and the job must restart by itself and end with the same
bits: on the hosts that are left, with as many ranks as before.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hosts as rig
import pytest
from harness import JOB, environment, forked, result, undisturbed

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.storage.locate import locate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(rig.missing() is not None, reason=str(rig.missing())),
]
# How long a peer behind a cut network may be silent.
TIMEOUTS = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "5", "DISTRIB_PEER_TIMEOUT_SECONDS": "5"}


@pytest.fixture
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[rig.Host]]:
    with rig.hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


def start(host: rig.Host, backend: str, run: Path, errors: Path) -> subprocess.Popen[bytes]:
    """Start three ranks on three hosts, and return when they have saved several checkpoints."""
    distrib = Path(sys.executable).with_name("distrib")
    # Two hosts have enough slots for all ranks.
    options = ["run", "--backend", backend, "-np", "3", "--hostfile", str(errors.parent / "hosts")]
    (errors.parent / "hosts").write_text("h0 slots=1\nh1 slots=1\nh2 slots=2\n")
    with errors.open("wb") as file:
        job = host.start(
            [str(distrib), *options, *forked(JOB, "--run", str(run))],
            env={**environment(), **TIMEOUTS},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    while max(CheckpointDirectory(locate(run, "directory")).steps(), default=0) < 12:
        assert job.poll() is None, errors.read_text()[-4000:]
        time.sleep(0.02)
    return job


# Horovod's ranks are cut off and lose a node in `test_kubernetes_job.py` as well.
@pytest.mark.parametrize(
    ("backend", "fault"),
    [
        ("multiworker", "cut"),
        pytest.param("multiworker", "kill", marks=pytest.mark.exhaustive),
        pytest.param("horovod", "cut", marks=pytest.mark.exhaustive),
        pytest.param("horovod", "kill", marks=pytest.mark.exhaustive),
    ],
    indirect=["backend"],
)
def test_the_job_continues_without_a_host(
    fault: str, backend: str, three: list[rig.Host], tmp_path: Path
) -> None:
    run, errors = tmp_path / "run", tmp_path / "errors"
    job = start(three[0], backend, run, errors)
    if fault == "kill":
        three[1].kill()
    else:
        three[1].cut()
    assert job.wait(120) == 0, errors.read_text()[-4000:]
    text = errors.read_text()
    assert "the connection to rank 1 on h1 was lost. Starting again now." in text
    assert text.count("lost another rank") == 2
    assert text.count("distrib: resuming from") == 1
    assert "Traceback" not in text
    assert result(run) == undisturbed(ranks=3, backend=backend)
    for host in (three[0], three[2]):  # `test_run.py` also checks the host that was cut off.
        deadline = time.monotonic() + 30
        while host.processes(JOB.name) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert host.processes(JOB.name) == []
