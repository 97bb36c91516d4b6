"""Copies variables to host memory while training waits: large ones several at once.

So copies from a device overlap with each other, and with those within host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from distrib.state.saved_variables import SavedVariable

_COPIES_AT_ONCE = 4
# Less is not worth a thread's while.
_GROUP_BYTES = 4 << 20

Values = list[npt.NDArray[Any]]


class HostBuffers:
    """Host memory that every snapshot reuses, so that only the first one pays for its pages."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], npt.NDArray[Any]] = {}

    def copy(self, group: str, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Copy `value` into the buffer of that name and return the buffer."""
        buffer = self._buffers.get((group, name))
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            self._buffers[group, name] = buffer = np.array(value, copy=True)
        else:
            np.copyto(buffer, value)
        return buffer


def copy_all(
    slots: Sequence[SavedVariable],
    values: Callable[[SavedVariable], Values],
    buffers: HostBuffers,
) -> list[Values]:
    """Return copies of the values of each variable, one for each of its names.

    Args:
        slots: The variables.
        values: Returns the values of one; called in threads.
        buffers: Receives the copies.
    """

    def copy(group: Sequence[SavedVariable]) -> list[Values]:
        return [
            [buffers.copy(slot.group, *pair) for pair in zip(slot.names, values(slot), strict=True)]
            for slot in group
        ]

    groups = list(_groups(slots))
    if len(groups) <= 1:
        return copy(slots)
    with ThreadPoolExecutor(_COPIES_AT_ONCE, "distrib-snapshot") as pool:
        return [copies for group in pool.map(copy, groups) for copies in group]


def _groups(slots: Sequence[SavedVariable]) -> Iterator[list[SavedVariable]]:
    """Divide variables into groups of a few MiB, in their order."""
    group: list[SavedVariable] = []
    size = 0
    for slot in slots:
        group.append(slot)
        size += slot.nbytes
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
