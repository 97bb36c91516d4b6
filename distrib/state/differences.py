"""What differs between a checkpoint and the run at hand, or between two ranks, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from distrib.checkpoint.training_item import format_variable, identity


def differences_between(
    saved: Mapping[str, Any],
    here: Mapping[str, Any],
    one: str = "checkpoint",
    other: str = "this run",
) -> Iterator[str]:
    """Yield a line for each difference between two descriptions of model and optimizer.

    Args:
        saved: A description, as of `TrainingState.describe`.
        here: The other one.
        one: What the first is called.
        other: What the second is called.
    """
    if saved["optimizer"] != here["optimizer"]:
        yield f"optimizer: {one} has {saved['optimizer']}, {other} has {here['optimizer']}"
    for old, new in zip_longest(saved["variables"], here["variables"]):
        if old is None:
            yield f"{new['group']}: only {other} has {format_variable(new)}"
        elif new is None:
            the = "the " * (one == "checkpoint")
            yield f"{old['group']}: only {the}{one} has {format_variable(old)}"
        elif identity(old) != identity(new):
            shown = format_variable(old), format_variable(new)
            yield f"{old['group']}: {one} has {shown[0]}, {other} has {shown[1]}"
