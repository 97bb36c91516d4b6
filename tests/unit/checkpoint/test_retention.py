from collections.abc import Callable
from typing import Any

import pytest

from distrib.checkpoint.manifest import Manifest
from distrib.checkpoint.retention import (
    AnyOf,
    BestN,
    EveryNHours,
    EveryNSteps,
    KeepIf,
    LatestN,
    RetentionPolicy,
)
from distrib.errors import ConfigurationError

HOUR = 3600.0


def saved(step: int, created: float = 0.0, **metrics: float) -> Manifest:
    return Manifest(step, step // 10, step % 10, created, (), metrics=metrics)


def test_latest() -> None:
    found = [saved(step) for step in (0, 5, 9)]
    assert LatestN(2).keep(found) == {5, 9}
    assert LatestN(7).keep(found) == {0, 5, 9}


def test_best_ignores_checkpoints_without_the_metric() -> None:
    found = [saved(0), saved(5, loss=2.0), saved(6, loss=1.0), saved(7, loss=1.0)]
    found += [saved(8, loss=float("nan")), saved(9, loss=3.0)]
    assert BestN(1, "loss").keep(found) == {6}
    assert BestN(2, "loss").keep(found) == {6, 7}
    assert BestN(2, "loss", "max").keep(found) == {5, 9}
    assert BestN(2, "val_loss").keep(found) == set()


def test_every_n_steps_keeps_the_first_of_each_period() -> None:
    policy = EveryNSteps(100)
    found = [saved(step) for step in (0, 40, 80, 120, 160, 240, 300, 330)]
    assert policy.keep(found) == {120, 240, 300}
    kept = [m for m in found if m.step in policy.keep(found)]
    assert policy.keep([*kept, saved(370), saved(410)]) == {120, 240, 300, 410}


def test_every_n_hours() -> None:
    found = [saved(i, created=i * HOUR / 2) for i in range(10)]
    assert EveryNHours(2).keep(found) == {0, 4, 8}


def test_any_of_and_a_function() -> None:
    found = [saved(step, loss=float(step)) for step in range(1, 31)]
    policy = AnyOf(LatestN(1), KeepIf(lambda m: m.batch == 0), BestN(1, "loss"))
    assert policy.keep(found) == {1, 10, 20, 30}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatestN(0), r"`LatestN\(n=0\)` must be a whole number of at least 1"),
        (lambda: LatestN(True), "LatestN"),
        (lambda: BestN(1.5, "loss"), r"BestN\(n=1.5\)"),  # type: ignore[arg-type]
        (lambda: BestN(1, "loss", "auto"), "must be 'min' or 'max'"),  # type: ignore[arg-type]
        (lambda: EveryNSteps(-1), "EveryNSteps"),
        (lambda: EveryNHours(0), r"EveryNHours\(hours=0\)` must be a number above 0"),
        (lambda: AnyOf(), "at least one policy"),
    ],
)
def test_wrong_arguments(make: Callable[[], RetentionPolicy], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_policies_are_comparable_and_hashable() -> None:
    one: Any = AnyOf(LatestN(2), EveryNSteps(5))
    assert one == AnyOf(LatestN(2), EveryNSteps(5))
    assert hash(one) == hash(AnyOf(LatestN(2), EveryNSteps(5)))
