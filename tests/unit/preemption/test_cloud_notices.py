"""How notices become requests; `tests/integration/test_notices.py` polls real servers."""

import queue
import threading

import pytest

from distrib.environment import NOTICES_VARIABLE
from distrib.errors import ConfigurationError
from distrib.preemption import cloud_notices
from distrib.preemption.cloud_notices import (
    Ec2Notices,
    GceNotices,
    NoticePoller,
    NoticeSource,
    sources,
)
from distrib.preemption.stop_request import StopRequest


class ScriptedSource(NoticeSource):
    """Returns the answers of a test, one for each call of `answer`."""

    interval = 0.0

    def __init__(self) -> None:
        self.answers: queue.Queue[str | Exception] = queue.Queue()
        self.polled = threading.Semaphore(0)

    def poll(self) -> str:
        self.polled.release()
        answer = self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def answer(self, *answers: str | Exception) -> None:
        """Return when the poller has received all answers and polls again."""
        for answer in answers:
            self.answers.put(answer)
        for _ in answers:
            assert self.polled.acquire(timeout=30)


@pytest.fixture
def source() -> ScriptedSource:
    return ScriptedSource()


@pytest.fixture
def stop(source: ScriptedSource) -> StopRequest:
    stop = StopRequest()
    NoticePoller([source], stop)
    assert source.polled.acquire(timeout=30)
    return stop


def requested(stop: StopRequest) -> bool:
    (thread,) = (t for t in threading.enumerate() if t.name == "distrib-notices")
    thread.join(30)
    return stop.requested


def test_a_notice_is_a_request_to_stop(
    source: ScriptedSource, stop: StopRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    source.answer("", "", "")
    assert not stop.requested
    source.answers.put("the end is near")
    assert requested(stop)
    assert "the end is near, so all ranks save and stop." in capsys.readouterr().err


def test_a_notice_from_before_training_is_no_request(
    source: ScriptedSource, stop: StopRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    source.answer("the end is near", "the end is near", "")
    assert not stop.requested
    assert capsys.readouterr().err.count("as before training began") == 1
    source.answers.put("the end is near")
    assert requested(stop)


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_notices, "_FIRST_RETRY_DELAY", 0.01)
    monkeypatch.setattr(cloud_notices, "_MAX_RETRY_DELAY", 0.01)


@pytest.mark.usefixtures("short_delays")
def test_a_server_that_does_not_answer_is_polled_again_and_reported_once(
    source: ScriptedSource, stop: StopRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    source.answer(OSError("no route"), ValueError("a page of HTML"), "", OSError("no route"))
    assert capsys.readouterr().err.count("cannot poll for preemption notices (no route)") == 1
    source.answers.put("the end is near")
    assert requested(stop)


def test_a_notice_after_the_end_of_training_is_no_request() -> None:
    source, stop = ScriptedSource(), StopRequest()
    poller = NoticePoller([source], stop)
    assert source.polled.acquire(timeout=30)
    source.answer("")
    poller.end()
    source.answers.put("the end is near")
    assert not requested(stop)


def test_the_variable_chooses_the_cloud() -> None:
    assert sources({}) == sources({NOTICES_VARIABLE: ""}) == []
    assert [type(s) for s in sources({NOTICES_VARIABLE: "gce"})] == [GceNotices, GceNotices]
    assert [type(s) for s in sources({NOTICES_VARIABLE: "ec2"})] == [Ec2Notices]
    with pytest.raises(ConfigurationError, match="DISTRIB_PREEMPTION_NOTICES='azure' must be"):
        sources({NOTICES_VARIABLE: "azure"})
