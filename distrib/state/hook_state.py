"""State of a `PyDataset` that has no `get_state`: the attributes that its epoch hooks change.

`on_epoch_begin` and `on_epoch_end` are where users shuffle. An attribute that one of them has
changed is saved with every checkpoint from then on. What `__getitem__` changes (a cache, a file
that it has opened) is not: it is called ahead of the training, on several threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from distrib.data.compare_contents import compare_contents
from distrib.data.contents import contents_of
from distrib.errors import CheckpointMismatchError, ConfigurationError
from distrib.log import log
from distrib.state.container_kinds import NotRebuiltError
from distrib.state.plain_values import (
    Rebuilder,
    Snapshot,
    from_storable,
    is_plain,
    snapshot,
    storable,
)
from distrib.state.value_kinds import attributes_of

_CHANGED, _OTHERS = "changed", "others"
# A checksum of larger arrays would delay every epoch, and a copy every checkpoint.
_MAX_BYTES = 256 << 20


class HookState:
    """Calls the hooks of an object, and saves and restores what they change of it.

    Args:
        holder: The `PyDataset`; no hook has been called yet.
    """

    def __init__(self, holder: Any) -> None:
        self._holder = holder
        self._name = type(holder).__name__
        self._changed: dict[str, Any] = {}
        self._reported: set[str] = set()
        self._at_start = _contents(holder)

    def call(self, hook: Callable[[], None]) -> None:
        """Call a hook and find out what it changes.

        Raises:
            ConfigurationError: If that is too large to be saved.
        """
        before = self._snapshots()
        hook()
        after = self._snapshots()
        changed = {name: now for name, now in after.items() if before.get(name) != now}
        for name, now in changed.items():
            if isinstance(now, _LargeArray):
                raise ConfigurationError(
                    f"`{self._name}.{hook.__name__}` changes `{name}`, an array that is too large "
                    "to be saved with every checkpoint. Shuffle an index instead: "
                    "`self.indices = self.rng.permutation(num_examples)`."
                )
            if is_plain(now):
                self._changed[name] = storable(now)
        self._report(hook, [name for name, now in changed.items() if not is_plain(now)])

    def attributes(self) -> dict[str, Any]:
        """Return the values of the attributes that hooks have changed."""
        present = attributes_of(self._holder)
        return {name: present[name] for name in self._changed if name in present}

    def get_state(self) -> dict[str, Any]:
        """Return the attributes that hooks have changed, and checksums of the other ones."""
        others = {key: each for key, each in self._at_start.items() if key not in self._changed}
        return {_CHANGED: dict(self._changed), _OTHERS: others}

    def set_state(self, state: dict[str, Any]) -> None:
        """Make the attributes what they were when the state was taken.

        Raises:
            CheckpointMismatchError: If an attribute that is not saved has other contents.
        """
        for name, saved in state[_OTHERS].items():
            here = self._at_start.get(name)
            if here and name not in self._changed and _differ(name, saved, here):
                raise CheckpointMismatchError(
                    f"`{name}` of {self._name} differs from the one that the checkpoint was "
                    "written with, or is in another order, so the same numbers mean other batches. "
                    "Pass the same data; if it is shuffled before the training, seed that."
                )
        self.share_state(state)

    def share_state(self, state: dict[str, Any]) -> None:
        """Take over the attributes that hooks have changed in another process of the job."""
        rebuilder, present = Rebuilder(), attributes_of(self._holder)
        for name, value in state[_CHANGED].items():
            try:
                new = rebuilder.rebuild(from_storable(value), present.get(name))
            except NotRebuiltError as error:
                log.warning(f"{self._name}.{name} could not be restored: {error}.")
                continue
            object.__setattr__(self._holder, name, new)
        self._changed = dict(state[_CHANGED])

    def _snapshots(self) -> dict[str, Snapshot]:
        return {name: _snapshot(value) for name, value in attributes_of(self._holder).items()}

    def _report(self, hook: Callable[[], None], names: list[str]) -> None:
        new = [name for name in names if name not in self._reported]
        self._reported.update(new)
        if new:
            log.warning(
                f"`{self._name}.{hook.__name__}` changes {', '.join(new)}, which cannot be saved "
                "in checkpoints and starts anew after a restart. If batches depend on it, give "
                f"{self._name} `get_state()` and `set_state(state)`."
            )


class _LargeArray(dict[str, Any]):
    """Contents of an array that is not saved."""


def _snapshot(value: Any) -> Snapshot:
    if type(value) is np.ndarray and value.nbytes > _MAX_BYTES:
        return _LargeArray(contents_of([("", value)]))
    return snapshot(value)


def _contents(holder: Any) -> dict[str, Any]:
    """Describe the attributes that say which examples a batch holds, and in which order.

    Lists and arrays of one dimension, such as indices, labels and names of files, whose folders may
    differ. Arrays of more dimensions may be memory to work in.
    """
    contents: dict[str, Any] = {}
    for name, value in attributes_of(holder).items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], str | int | float):
            names = [os.path.basename(each) if isinstance(each, str) else each for each in value]
            contents |= contents_of([(name, names)])
        elif isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iuSU":
            contents |= contents_of([(name, value)])
    return contents


def _differ(name: str, saved: Any, here: Any) -> bool:
    return compare_contents({name: saved}, {name: here}) == "other"
