"""What differs between a checkpoint and the run at hand, or between two ranks, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from distrib.checkpoint.training_item import format_variable, identity
from distrib.errors import CheckpointMismatchError


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


def check_data(saved: Mapping[str, Any] | None, here: Mapping[str, Any] | None) -> None:
    """Raise if the training data differs from the checkpoint's.

    Args:
        saved: Description of the data in the checkpoint; `None` if they cannot be resumed.
        here: The same of the data at hand.

    Raises:
        CheckpointMismatchError: Names what differs.
    """
    if saved == here:
        return
    if saved is None or here is None:
        kind = {True: "data that is not a cluster.dataset", False: "a cluster.dataset"}
        changed = f"  checkpoint has {kind[saved is None]}, this run has {kind[here is None]}"
    else:
        changed = "\n".join(
            f"  {key}: checkpoint has {saved.get(key)}, this run has {here.get(key)}"
            for key in sorted({*saved, *here})
            if saved.get(key) != here.get(key)
        )
    raise CheckpointMismatchError(
        f"The checkpoint was written by a run on other training data:\n{changed}\n"
        "Nothing was changed. Pass the same data, or give this run its own `directory`."
    )
