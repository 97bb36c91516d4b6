"""What is done with notices; where they come from is in `tests/integration/test_notices.py`."""

import queue
import threading

import pytest

from distrib.environment import NOTICES_VARIABLE
from distrib.errors import ConfigurationError
from distrib.preemption import cloud_notices
from distrib.preemption.cloud_notices import Ec2, Gce, NoticePoller, NoticeSource, sources
from distrib.preemption.stop_request import StopRequest


class Script(NoticeSource):
    """Answers what a test says, when it says so."""

    pause = 0.0

    def __init__(self) -> None:
        self.answers: queue.Queue[str | Exception] = queue.Queue()
        self.asked = threading.Semaphore(0)

    def ask(self) -> str:
        self.asked.release()
        answer = self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def answer(self, *answers: str | Exception) -> None:
        """Return when the watch has got them all, and asks for more."""
        for answer in answers:
            self.answers.put(answer)
        for _ in answers:
            assert self.asked.acquire(timeout=30)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def stop(script: Script) -> StopRequest:
    stop = StopRequest()
    NoticePoller([script], stop)
    assert script.asked.acquire(timeout=30)
    return stop


def requested(stop: StopRequest) -> bool:
    (thread,) = (t for t in threading.enumerate() if t.name == "distrib-notices")
    thread.join(30)
    return stop.requested


def test_a_notice_is_a_request_to_stop(
    script: Script, stop: StopRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    script.answer("", "", "")
    assert not stop.requested
    script.answers.put("the end is near")
    assert requested(stop)
    assert "the end is near, so all ranks save and stop." in capsys.readouterr().err


def test_a_notice_from_before_training_has_been_obeyed(
    script: Script, stop: StopRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    script.answer("the end is near", "the end is near", "")
    assert not stop.requested
    assert capsys.readouterr().err.count("as before training began") == 1
    script.answers.put("the end is near")
    assert requested(stop)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_notices, "_FIRST_PAUSE_AFTER_FAILURE", 0.01)
    monkeypatch.setattr(cloud_notices, "_LONGEST_PAUSE", 0.01)


@pytest.mark.usefixtures("hasty")
def test_a_server_that_does_not_answer_is_asked_again_and_told_of_once(
    script: Script, stop: StopRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    script.answer(OSError("no route"), ValueError("a page of HTML"), "", OSError("no route"))
    assert capsys.readouterr().err.count("cannot ask for notices of preemption (no route)") == 1
    script.answers.put("the end is near")
    assert requested(stop)


def test_after_the_end_of_training_nothing_is_asked() -> None:
    script, stop = Script(), StopRequest()
    watch = NoticePoller([script], stop)
    assert script.asked.acquire(timeout=30)
    script.answer("")
    watch.end()
    script.answers.put("the end is near")
    assert not requested(stop)


def test_which_cloud_is_asked() -> None:
    assert sources({}) == sources({NOTICES_VARIABLE: ""}) == []
    assert [type(s) for s in sources({NOTICES_VARIABLE: "gce"})] == [Gce, Gce]
    assert [type(s) for s in sources({NOTICES_VARIABLE: "ec2"})] == [Ec2]
    with pytest.raises(ConfigurationError, match="DISTRIB_PREEMPTION_NOTICES='azure' must be"):
        sources({NOTICES_VARIABLE: "azure"})
