"""Snapshots of Python values, and the same values made again, perhaps in another process.

A snapshot of a plain value consists of what `codec` can store. Plain are numbers, strings, `None`,
arrays, and the kinds in `value_kinds.py`. Anything else (a file, a thread, a model) is `Opaque`: it
equals itself only, and cannot be stored.

Lists, dicts and objects that exist already are changed in place, because others may hold them: a
script that passed a list to its callback goes on with that list.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distrib.state import codec
from distrib.state.value_kinds import KINDS, kind_of

Snapshot = Any
_KIND, _PARTS = "kind", "parts"
_DEEPEST = 30
# Larger arrays are not kept to tell whether they have changed: a checksum is.
_SMALL_BYTES = 2**20


@dataclass(frozen=True)
class Array:
    """An array in a snapshot, which equals arrays of the same bytes.

    Attributes:
        dtype: Name of its dtype.
        shape: Its shape.
        checksum: CRC32 of its bytes.
        value: The array, not copied; `None` if it was not kept.
    """

    dtype: str
    shape: tuple[int, ...]
    checksum: int
    value: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, value: Any) -> Array:
        """Return the snapshot of an array."""
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        return cls(value.dtype.name, value.shape, zlib.crc32(content.data), value)


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value in a snapshot that cannot be stored. An iterator is always taken for changed."""

    value: Any

    def __eq__(self, other: object) -> bool:
        advances = isinstance(self.value, Iterator) and not isinstance(self.value, io.IOBase)
        return isinstance(other, Opaque) and other.value is self.value and not advances

    def __hash__(self) -> int:
        return id(self.value)


def snapshot(value: Any, saved_elsewhere: Collection[int] = ()) -> Snapshot:
    """Return a snapshot of a value. The arrays in it are not copied.

    Args:
        value: Anything.
        saved_elsewhere: `id`s of values that are left as they are, such as the model's variables.
    """

    def take(value: Any, enclosing: tuple[int, ...]) -> Snapshot:
        if value is None or type(value) in (bool, int, float, str) or codec.is_scalar(value):
            return value
        if type(value) is np.ndarray:
            return Array.of(value) if codec.is_array(value) else Opaque(value)
        if id(value) in saved_elsewhere:
            return {_KIND: "saved elsewhere", _PARTS: None}
        if id(value) in enclosing or len(enclosing) == _DEEPEST:
            return Opaque(value)
        name = kind_of(value)
        enclosing = (*enclosing, id(value))
        if name == "list":
            return [take(item, enclosing) for item in list(value)]
        if name is None:
            return Opaque(value)
        return {_KIND: name, _PARTS: take(KINDS[name].parts(value), enclosing)}

    return take(value, ())


def is_plain(tree: Snapshot) -> bool:
    """Tell whether a snapshot can be stored."""
    return _every(tree, lambda leaf: not isinstance(leaf, Opaque))


def is_complete(tree: Snapshot) -> bool:
    """Tell whether its value can be made from a snapshot: it is plain and has all its arrays."""
    return is_plain(tree) and _every(
        tree, lambda leaf: not (isinstance(leaf, Array) and leaf.value is None)
    )


def storable(tree: Snapshot) -> Any:
    """Return a plain snapshot as `codec` stores it, with copies of its arrays."""
    return _replace(tree, Array, lambda array: np.array(array.value))


def from_storable(tree: Any) -> Snapshot:
    """Undo `storable`."""
    return _replace(tree, np.ndarray, Array.of)


def without_large_arrays(tree: Snapshot) -> Snapshot:
    """Return a snapshot with copies of small arrays, and of large ones the checksum."""

    def reduce(array: Array) -> Array:
        copy = np.array(array.value) if array.value.nbytes <= _SMALL_BYTES else None
        return Array(array.dtype, array.shape, array.checksum, copy)

    return _replace(tree, Array, reduce)


class Rebuilder:
    """Makes the values of snapshots; what several of them share stays shared."""

    def __init__(self) -> None:
        # What was changed in place, by `id`; the object is kept so that its `id` is.
        self._changed: dict[int, tuple[Any, Snapshot]] = {}

    def rebuild(self, tree: Snapshot, old: Any = None) -> Any:
        """Return the value of a complete snapshot.

        Args:
            tree: The snapshot.
            old: The value now, which is changed and returned if it is of the same kind.

        Raises:
            NotRebuiltError: If a part of it is missing in this process.
        """
        if isinstance(tree, Array):
            return np.array(tree.value)
        if not isinstance(tree, list | dict):
            return tree
        if id(old) in self._changed:
            shared, earlier = self._changed[id(old)]
            if earlier == tree:
                return shared
            old = None  # The two have parted.
        elif old is not None:
            self._changed[id(old)] = (old, tree)
        name, parts = ("list", tree) if isinstance(tree, list) else (tree[_KIND], tree[_PARTS])
        return KINDS[name].make(parts, old, self.rebuild)


def _every(tree: Snapshot, holds: Callable[[Any], bool]) -> bool:
    if isinstance(tree, list):
        return all(_every(item, holds) for item in tree)
    return _every(tree[_PARTS], holds) if isinstance(tree, dict) else holds(tree)


def _replace(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, list):
        return [_replace(item, kind, function) for item in tree]
    if isinstance(tree, dict):
        return {_KIND: tree[_KIND], _PARTS: _replace(tree[_PARTS], kind, function)}
    return function(tree) if isinstance(tree, kind) else tree
