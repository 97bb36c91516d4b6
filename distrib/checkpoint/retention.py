"""Policies that say which checkpoints to keep; they can be combined.

A policy returns the checkpoints to keep. All others are removed after the next commit. The newest
checkpoint is always kept, and so is the one that the run was resumed from, until the next commit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from distrib.checkpoint.manifest import Manifest
from distrib.errors import ConfigurationError


class RetentionPolicy(Protocol):
    """The interface of a retention policy."""

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the steps of the checkpoints to keep.

        Args:
            checkpoints: Manifests of all committed checkpoints, oldest first.
        """


@dataclass(frozen=True)
class LatestN:
    """Keep the newest checkpoints.

    Attributes:
        n: Number of checkpoints, at least 1.
    """

    n: int

    def __post_init__(self) -> None:
        _check_positive("LatestN", "n", self.n, whole=True)

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the steps of the last `n`."""
        return {manifest.step for manifest in checkpoints[-self.n :]}


@dataclass(frozen=True)
class BestN:
    """Keep the checkpoints with the best values of a metric.

    The value is the last one that Keras logged before the save: the epoch's results (such as
    `val_loss`) at the end of an epoch, and the running training metrics within an epoch.
    Checkpoints where the metric is missing or NaN are ignored.

    Attributes:
        n: Number of checkpoints, at least 1.
        metric: Name in Keras's logs, such as `"val_loss"`.
        mode: `"min"` or `"max"`. Defaults to `"min"`.
    """

    n: int
    metric: str
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        _check_positive("BestN", "n", self.n, whole=True)
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f"`BestN(mode={self.mode!r})` must be 'min' or 'max'.")

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the steps of the best `n`, preferring earlier steps among equal values."""
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
        """Return the first step of each period of `n` steps, without the untrained state."""
        trained = [manifest for manifest in checkpoints if manifest.step >= self.n]
        return _first_of_each(trained, lambda manifest: manifest.step // self.n)


@dataclass(frozen=True)
class EveryNHours:
    """Keep the first checkpoint of every period of time.

    Attributes:
        hours: Length of a period. Periods are aligned to 1970-01-01 00:00 UTC, so that restarts do
            not shift them.
    """

    hours: float

    def __post_init__(self) -> None:
        _check_positive("EveryNHours", "hours", self.hours)

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the first step of each period."""
        return _first_of_each(checkpoints, lambda m: int(m.created // (self.hours * 3600)))


@dataclass(frozen=True)
class KeepIf:
    """Keep the checkpoints that a function selects.

    Attributes:
        predicate: Receives the checkpoint's `Manifest` (`step`, `epoch`, `batch`, `created`,
            `metrics`, ...) and returns whether to keep it.

    Example:
    >>> from distrib.checkpoint.manifest import Manifest
    >>> policy = KeepIf(lambda manifest: manifest.batch == 0)  # Keep ends of epochs.
    >>> policy.keep([Manifest(7, 0, 7, 0.0, ()), Manifest(8, 1, 0, 0.0, ())])
    {8}
    """

    predicate: Callable[[Manifest], bool]

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the steps for which the function is true."""
        return {manifest.step for manifest in checkpoints if self.predicate(manifest)}


@dataclass(frozen=True)
class AnyOf:
    """Keep the checkpoints that at least one of several policies keeps.

    Attributes:
        policies: One or more.
    """

    policies: tuple[RetentionPolicy, ...]

    def __init__(self, *policies: RetentionPolicy) -> None:
        if not policies:
            raise ConfigurationError("`AnyOf()` needs at least one policy.")
        object.__setattr__(self, "policies", policies)

    def keep(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Return the steps that any policy keeps."""
        return set().union(*(policy.keep(checkpoints) for policy in self.policies))


def _first_of_each(checkpoints: Sequence[Manifest], period: Callable[[Manifest], int]) -> set[int]:
    first: dict[int, int] = {}
    for manifest in checkpoints:
        first.setdefault(period(manifest), manifest.step)
    return set(first.values())


def _check_positive(policy: str, name: str, value: float, whole: bool = False) -> None:
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not value > 0:
        number = "a whole number of at least 1" if whole else "a number above 0"
        raise ConfigurationError(f"`{policy}({name}={value!r})` must be {number}.")
