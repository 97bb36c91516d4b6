"""Preemption notices, from servers that are as strict as the clouds' own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from cloud_metadata import Metadata, metadata_server
from harness import begin, finish, undisturbed

from distrib.errors import EXIT_PREEMPTED
from distrib.preemption.cloud_notices import (
    NOTICES_VARIABLE,
    Ec2Notices,
    GceNotices,
    NoticePoller,
    sources,
)
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
    raise TimeoutError("no request to stop was made")


@pytest.mark.parametrize(
    ("key", "calm", "notice"),
    [
        ("preempted", "FALSE", "TRUE"),
        ("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"),
    ],
)
def test_a_changed_value_of_googles_server_is_a_request(
    key: str, calm: str, notice: str, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GceNotices, "interval", 0.01)
    stop = StopRequest()
    poller = NoticePoller(sources({NOTICES_VARIABLE: "gce", **metadata.environment}), stop)
    metadata.wait_for_requests(f"/{key}?", 2)  # The second one waits for a change.
    metadata.set_google(key, calm)
    metadata.wait_for_requests(f"/{key}?", 3)
    assert not stop.requested
    metadata.set_google(key, notice)
    wait_for(stop)
    poller.end()


def test_an_answer_of_amazons_server_is_a_request(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ec2Notices, "interval", 0.01)
    stop = StopRequest()
    poller = NoticePoller(sources({NOTICES_VARIABLE: "ec2", **metadata.environment}), stop)
    metadata.wait_for_requests("instance-action", 3)
    assert not stop.requested
    metadata.set_amazon(NOTICE)
    wait_for(stop)
    poller.end()
    assert metadata.log.count("PUT /latest/api/token") == 1


def test_an_expired_token_of_amazon_is_renewed(metadata: Metadata) -> None:
    source = Ec2Notices(metadata.environment)
    assert source.poll() == ""
    metadata.expire_tokens()
    metadata.set_amazon(NOTICE)
    assert source.poll() == "Amazon will terminate this instance at 2026-09-18T08:22:00Z"
    assert metadata.log.count("PUT /latest/api/token") == 2


def test_proxies_are_not_used(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Ec2Notices(metadata.environment).poll() == ""


def test_answers_of_other_servers_are_errors(metadata: Metadata) -> None:
    metadata.flavor = "Vanilla"
    with pytest.raises(ValueError, match="is not Google's metadata server"):
        GceNotices("preempted", ("TRUE",), metadata.environment).poll()
    source = Ec2Notices(metadata.environment)
    metadata.set_amazon('"terminate"')
    with pytest.raises(ValueError, match="is not Amazon's notice"):
        source.poll()
    with pytest.raises(HTTPError):
        Ec2Notices({"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{metadata.address}/else"}).poll()


@pytest.mark.slow
def test_a_notice_preempts_a_run_which_resumes_exactly(metadata: Metadata, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = begin(run, *SHORT, **{NOTICES_VARIABLE: "gce"}, **metadata.environment)
    metadata.wait_for_requests("/preempted?", 2)
    metadata.set_google("preempted", "TRUE")
    assert process.wait(60) == EXIT_PREEMPTED
    output = (tmp_path / "run.output").read_text()
    assert "Google says preempted=TRUE, so all ranks save and stop." in output
    assert "Run the same command again to go on." in output
    assert finish(run, *SHORT) == undisturbed(*SHORT)
