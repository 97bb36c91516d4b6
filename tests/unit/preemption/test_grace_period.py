import math

import pytest

from distrib.collectives import SingleProcess
from distrib.preemption.grace_period import GracePeriod, save_fits
from distrib.preemption.stop_request import StopRequest


class SecondRank(SingleProcess):
    """Collectives of rank 1, which does not know how long a save takes."""

    def __init__(self, chiefs: tuple[float, float]) -> None:
        self.chiefs = chiefs

    def allgather(self, value):  # type: ignore[no-untyped-def]
        return [self.chiefs, value]


def test_time_runs_from_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stop, grace = StopRequest(), GracePeriod(60)
    assert grace.left(stop) == math.inf
    stop.request()
    now += 12
    stop.request()
    assert grace.left(stop) == 48
    assert GracePeriod(None).left(stop) == math.inf


def test_twice_a_save_and_a_step_must_fit(capsys: pytest.CaptureFixture[str]) -> None:
    grace = GracePeriod(60)
    grace.check(0, 99)  # Nothing has been saved yet.
    grace.check(25, 5)
    assert capsys.readouterr().err == ""
    grace.check(25, 6)
    message = capsys.readouterr().err
    assert (
        "leaves 60 s (DISTRIB_GRACE_SECONDS) and may need 62 s: a save takes 25 s, a step 6 s"
        in message
    )
    assert "last checkpoint may be lost then" in message
    grace.check(99, 6)  # It warns once only.
    assert capsys.readouterr().err == ""


def test_a_save_that_never_fits_has_a_message_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    GracePeriod(60).check(61, 0)
    assert "last checkpoint will be lost then" in capsys.readouterr().err


def test_without_a_grace_period_there_is_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    GracePeriod(None).check(1e6, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("chiefs", "left", "answer"),
    [
        ((math.inf, 30.0), 40.0, True),
        ((math.inf, 30.0), 20.0, False),
        ((20.0, 30.0), math.inf, False),
        ((math.inf, 1e9), math.inf, True),
    ],
)
def test_the_rank_with_the_least_time_decides(
    chiefs: tuple[float, float], left: float, answer: bool
) -> None:
    assert save_fits(SecondRank(chiefs), left, 0.0) is answer
