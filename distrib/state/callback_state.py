"""The callbacks of a `fit` whose state is saved with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import keras


@runtime_checkable
class StatefulCallback(Protocol):
    """A callback, distrib's or anybody's, whose state is saved with the checkpoint.

    Values may be None, bool, int, float, str, numpy arrays of numbers, and lists, tuples and
    str-keyed dicts of these. `set_state` is called after every callback's `on_train_begin`, and
    once more after `on_epoch_begin` when the run goes on in the middle of an epoch.
    """

    def get_state(self) -> dict[str, Any]:
        """Return a copy of all that the callback needs to continue."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned, perhaps in another process."""


def stateful_callbacks(callbacks: Sequence[Any]) -> Iterator[tuple[str, StatefulCallback]]:
    """Yield the callbacks that have state, each with a name that the same list always gives it."""
    count: dict[str, int] = {}
    for callback in callbacks:
        if isinstance(callback, StatefulCallback):
            kind = type(callback).__name__
            count[kind] = count.get(kind, 0) + 1
            yield (kind if count[kind] == 1 else f"{kind}-{count[kind]}"), callback


def acts_in_validation(callback: Any) -> bool:
    """Tell whether a callback has hooks that a validation calls."""
    return any(
        getattr(type(callback), hook, None) is not getattr(keras.callbacks.Callback, hook)
        for hook in ("on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end")
    )
