"""What a kind of Python values is that can be saved, and the kinds of containers.

For each kind: how to recognize a value of it, what of it to save, and how to make it again. Where a
value of the same kind exists already it is changed in place, because others may hold it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# Longer lists of numbers are saved as arrays: faster to compare and to write.
_LONG = 256


class NotRebuiltError(Exception):
    """A value cannot be made again: its class, or the object it belongs to, is missing here."""


class Rebuild(Protocol):
    """Makes values of their saved parts."""

    def __call__(self, tree: Any, /, old: Any = None) -> Any:
        """Return the value, made from `old` if that is of the same kind."""


@dataclass(frozen=True)
class Kind:
    """A kind of values.

    Attributes:
        matches: Tells whether a value is of this kind.
        parts: Returns a value of another kind that says all about it.
        make: Returns the value, given its saved parts, the present value, and a function that makes
            the parts.
    """

    matches: Callable[[Any], bool]
    parts: Callable[[Any], Any]
    make: Callable[[Any, Any, Rebuild], Any]


def exactly(*types: type) -> Callable[[Any], bool]:
    """Return a function that tells whether a value is of one of these types, not of a subclass."""
    return lambda value: type(value) in types


def _make_items(parts: list[Any], old: Iterable[Any], rebuild: Rebuild) -> list[Any]:
    before = list(old)
    before += [None] * (len(parts) - len(before))
    return [rebuild(part, item) for part, item in zip(parts, before, strict=False)]


def _make_list(parts: list[Any], old: Any, rebuild: Rebuild) -> Any:
    if type(old) is not list:
        return _make_items(parts, (), rebuild)
    old[:] = _make_items(parts, old, rebuild)
    return old


def _is_long_list(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) > _LONG
        and len(kinds := set(map(type, value))) == 1
        and (kinds == {float} or (kinds == {int} and np.array(value).dtype == np.int64))
    )


def _make_long_list(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    return _make_list(rebuild(parts).tolist(), old, lambda part, old=None: part)


def pairs_of(value: Any) -> list[Any]:
    """Return the items of a dict as lists."""
    return [list(pair) for pair in list(value.items())]


def _into_dict(pairs: list[Any], old: Any, rebuild: Rebuild) -> Any:
    """Give a dict its saved items, in their order."""
    keys = [rebuild(key) for key, _ in pairs]
    values = [rebuild(part, old.get(key)) for key, (_, part) in zip(keys, pairs, strict=True)]
    old.clear()
    for key, value in zip(keys, values, strict=True):  # `update` of a Counter would count them.
        old[key] = value
    return old


def _dict(kind: type) -> Kind:
    def make(parts: Any, old: Any, rebuild: Rebuild) -> Any:
        return _into_dict(parts, old if type(old) is kind else kind(), rebuild)

    return Kind(exactly(kind), pairs_of, make)


def _make_defaultdict(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    factory, pairs = parts
    made = old if type(old) is defaultdict else defaultdict(rebuild(factory))
    return _into_dict(pairs, made, rebuild)


def _make_set(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    made = old if type(old) is set else set()
    items = rebuild(parts)
    made.clear()
    made.update(items)
    return made


def _make_deque(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    length, items = parts
    made = old if type(old) is deque and old.maxlen == length else deque(maxlen=length)
    items = rebuild(items)
    made.clear()
    made.extend(items)
    return made


def _items(value: Any) -> list[Any]:
    return list(value)


# By the name that a checkpoint has for them; the first that matches counts.
CONTAINERS: dict[str, Kind] = {
    "numbers": Kind(_is_long_list, np.array, _make_long_list),
    "list": Kind(exactly(list), _items, _make_list),
    "dict": _dict(dict),
    "tuple": Kind(exactly(tuple), _items, lambda parts, old, rebuild: tuple(rebuild(parts))),
    "set": Kind(exactly(set), lambda value: sorted(value, key=repr), _make_set),
    "frozenset": Kind(
        exactly(frozenset),
        lambda value: sorted(value, key=repr),
        lambda parts, old, rebuild: frozenset(rebuild(parts)),
    ),
    "deque": Kind(exactly(deque), lambda value: [value.maxlen, list(value)], _make_deque),
    "defaultdict": Kind(
        exactly(defaultdict),
        lambda value: [value.default_factory, pairs_of(value)],
        _make_defaultdict,
    ),
    "OrderedDict": _dict(OrderedDict),
    "Counter": _dict(Counter),
}
