"""Which checkpoints are kept: small policies that can be put together.

A policy names those to keep, and everything that no policy names is removed, after a newer one has
been committed. The newest is always kept, and so is the one that the run was resumed from, until
the next commit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from distrib.checkpoint.manifest import Manifest
from distrib.errors import ConfigurationError


class RetentionPolicy(Protocol):
    """Anything that can say which checkpoints to keep."""

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the steps of those to keep.

        Args:
            checkpoints: All committed ones, oldest first.
        """


@dataclass(frozen=True)
class LatestN:
    """Keep the newest ones.

    Attributes:
        n: How many, at least 1.
    """

    n: int

    def __post_init__(self) -> None:
        _check_positive("LatestN", "n", self.n, whole=True)

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the steps of the last `n`."""
        return {manifest.step for manifest in checkpoints[-self.n :]}


@dataclass(frozen=True)
class BestN:
    """Keep those with the best value of a metric.

    What counts is what Keras had reported last when the checkpoint was saved: the epoch's results
    (`val_loss` and its like) for one saved at the end of an epoch, and the running training metrics
    for one saved within. Checkpoints that lack the metric, or where it is NaN, do not count.

    Attributes:
        n: How many, at least 1.
        metric: Its name in Keras's logs, such as `"val_loss"`.
        mode: `"min"` or `"max"`.
    """

    n: int
    metric: str
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        _check_positive("BestN", "n", self.n, whole=True)
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f"`BestN(mode={self.mode!r})` must be 'min' or 'max'.")

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the steps of the best `n`; of equal ones the earlier."""
        values = {m.step: m.metrics.get(self.metric, math.nan) for m in checkpoints}
        sign = 1 if self.mode == "min" else -1
        ranked = sorted(
            (sign * value, step) for step, value in values.items() if not math.isnan(value)
        )
        return {step for _, step in ranked[: self.n]}


@dataclass(frozen=True)
class EveryNSteps:
    """Keep the first checkpoint at or after every `n` steps.

    Attributes:
        n: Train steps.
    """

    n: int

    def __post_init__(self) -> None:
        _check_positive("EveryNSteps", "n", self.n, whole=True)

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the first step of each stretch of `n`, but not the run's very first state."""
        trained = [manifest for manifest in checkpoints if manifest.step >= self.n]
        return _first_of_each(trained, lambda manifest: manifest.step // self.n)


@dataclass(frozen=True)
class EveryNHours:
    """Keep the first checkpoint of every stretch of time.

    Attributes:
        hours: Length of the stretches, counted from midnight UTC of 1970-01-01, so that restarts do
            not shift them.
    """

    hours: float

    def __post_init__(self) -> None:
        _check_positive("EveryNHours", "hours", self.hours)

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the first step of each stretch."""
        return _first_of_each(checkpoints, lambda m: int(m.created // (self.hours * 3600)))


@dataclass(frozen=True)
class KeepIf:
    """Keep those that a function of yours chooses.

    Attributes:
        predicate: Receives the checkpoint's `Manifest`: `step`, `epoch`, `batch`, `created`,
            `metrics`, and more.

    Example:
    >>> from distrib.checkpoint.manifest import Manifest
    >>> policy = KeepIf(lambda manifest: manifest.batch == 0)  # Those at the end of an epoch.
    >>> policy.keep([Manifest(7, 0, 7, 0.0, ()), Manifest(8, 1, 0, 0.0, ())])
    {8}
    """

    predicate: Callable[[Manifest], bool]

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the steps for which the function is true."""
        return {manifest.step for manifest in checkpoints if self.predicate(manifest)}


@dataclass(frozen=True)
class AnyOf:
    """Keep what at least one of several policies keeps.

    Attributes:
        policies: At least one.
    """

    policies: tuple[RetentionPolicy, ...]

    def __init__(self, *policies: RetentionPolicy) -> None:
        if not policies:
            raise ConfigurationError("`AnyOf()` needs at least one policy.")
        object.__setattr__(self, "policies", policies)

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the union."""
        return set().union(*(policy.keep(checkpoints) for policy in self.policies))


def _first_of_each(checkpoints: Sequence[Manifest], stretch: Callable[[Manifest], int]) -> set[int]:
    first: dict[int, int] = {}
    for manifest in checkpoints:
        first.setdefault(stretch(manifest), manifest.step)
    return set(first.values())


def _check_positive(policy: str, name: str, value: float, whole: bool = False) -> None:
    sort = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not sort or not value > 0:
        number = "a whole number of at least 1" if whole else "a number above 0"
        raise ConfigurationError(f"`{policy}({name}={value!r})` must be {number}.")
