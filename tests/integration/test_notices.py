"""Notices of clouds, from a server that is as strict as theirs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from cloud_metadata import Metadata, metadata_server
from harness import begin, finish, undisturbed

from distrib.errors import EXIT_PREEMPTED
from distrib.preemption.cloud_notices import VARIABLE, Ec2, Gce, Watch, sources
from distrib.preemption.stop_request import StopRequest

SHORT = ["--epochs", "2"]
NOTICE = '{"action": "terminate", "time": "2026-09-18T08:22:00Z"}'


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with metadata_server() as metadata:
        yield metadata


def wait_for(stop: StopRequest) -> None:
    for _ in range(6000):
        if stop.requested:
            return
        time.sleep(0.01)
    raise TimeoutError("nobody has asked to stop")


@pytest.mark.parametrize(
    ("key", "calm", "notice"),
    [
        ("preempted", "FALSE", "TRUE"),
        ("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"),
    ],
)
def test_google(
    key: str, calm: str, notice: str, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gce, "pause", 0.01)
    stop = StopRequest()
    watch = Watch(sources({VARIABLE: "gce", **metadata.environment}), stop)
    metadata.wait_until_asked(f"/{key}?", 2)  # The second time it waits.
    metadata.google_says(key, calm)
    metadata.wait_until_asked(f"/{key}?", 3)
    assert not stop.requested
    metadata.google_says(key, notice)
    wait_for(stop)
    watch.end()


def test_amazon(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ec2, "pause", 0.01)
    stop = StopRequest()
    watch = Watch(sources({VARIABLE: "ec2", **metadata.environment}), stop)
    metadata.wait_until_asked("instance-action", 3)
    assert not stop.requested
    metadata.amazon_says(NOTICE)
    wait_for(stop)
    watch.end()
    assert metadata.log.count("PUT /latest/api/token") == 1


def test_amazons_token_is_renewed(metadata: Metadata) -> None:
    source = Ec2(metadata.environment)
    assert source.ask() == ""
    metadata.forget_tokens()
    metadata.amazon_says(NOTICE)
    assert source.ask() == "Amazon will terminate this instance at 2026-09-18T08:22:00Z"
    assert metadata.log.count("PUT /latest/api/token") == 2


def test_a_proxy_is_not_asked(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Ec2(metadata.environment).ask() == ""


def test_answers_of_somebody_else(metadata: Metadata) -> None:
    metadata.flavor = "Vanilla"
    with pytest.raises(ValueError, match="is not Google's metadata server"):
        Gce("preempted", ("TRUE",), metadata.environment).ask()
    source = Ec2(metadata.environment)
    metadata.amazon_says('"terminate"')
    with pytest.raises(ValueError, match="is not Amazon's notice"):
        source.ask()
    with pytest.raises(HTTPError):
        Ec2({"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{metadata.address}/else"}).ask()


@pytest.mark.slow
def test_a_notice_ends_a_run_which_goes_on_to_the_same_end(
    metadata: Metadata, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = begin(run, *SHORT, **{VARIABLE: "gce"}, **metadata.environment)
    metadata.wait_until_asked("/preempted?", 2)
    metadata.google_says("preempted", "TRUE")
    assert process.wait(60) == EXIT_PREEMPTED
    output = (tmp_path / "run.output").read_text()
    assert "Google says preempted=TRUE, so all ranks save and stop." in output
    assert "Run the same command again to go on." in output
    assert finish(run, *SHORT) == undisturbed(*SHORT)
