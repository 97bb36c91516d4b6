"""The kinds of Python values that can be saved, beside numbers, strings and arrays.

For each kind: how to recognize a value of it, what of it to save, and how to make it again. Where a
value of the same kind exists already it is changed in place, because others may hold it.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

# Longer lists of numbers are saved as arrays: faster to compare and to write.
_LONG = 256
# Their objects have variables, threads and caches, which are not their attributes' business.
_FRAMEWORKS = ("keras", "tensorflow", "distrib")
_PICKLING = ("__reduce_ex__", "__reduce__", "__getstate__")


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


def kind_of(value: Any) -> str | None:
    """Return the name of the kind that a value is of; `None` if it is of none."""
    if type(value) is dict:
        return "dict"  # Not the first in the list, but there may be many.
    return next((name for name, kind in KINDS.items() if kind.matches(value)), None)


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, those in slots included."""
    try:
        state = object.__getstate__(value)
    except TypeError:
        return {}
    in_dict, in_slots = state if isinstance(state, tuple) else (state, None)
    return {**(in_dict or {}), **(in_slots or {})}


def _exactly(*types: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in types


def _instance(*types: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types)


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


def _pairs(value: Any) -> list[Any]:
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

    return Kind(_exactly(kind), _pairs, make)


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


def _name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, np.ufunc) else value.__qualname__


def _reference(value: Any) -> list[str]:
    """Where a class, a function or a member of an enumeration can be imported from."""
    if isinstance(value, Enum):
        return [*_reference(type(value)), value.name]
    module = "numpy" if isinstance(value, np.ufunc) else value.__module__
    return [module, *_name_of(value).split(".")]


def _find(parts: list[str], old: Any = None, rebuild: Any = None) -> Any:
    module, *names = parts
    value: Any = sys.modules.get(module)
    for name in names:
        value = getattr(value, name, None)
    if value is None:
        raise NotRebuiltError(f"{'.'.join(parts)} does not exist")
    return value


def _is_importable(value: Any) -> bool:
    if not isinstance(value, type | np.ufunc | Enum) and not (
        callable(value) and hasattr(value, "__qualname__") and hasattr(value, "__module__")
    ):
        return False
    try:
        return _find(_reference(value)) is value
    except (NotRebuiltError, AttributeError, TypeError):
        return False


def _make_namedtuple(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    kind, items = parts
    return rebuild(kind)(*rebuild(items))


def _make_variable(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    if not isinstance(old, tf.Variable | keras.Variable):
        raise NotRebuiltError("the variable does not exist before training begins")
    old.assign(rebuild(parts))
    return old


def _variables_of(value: Any) -> list[Any]:
    """Return the variables of what Keras makes of variables: models, metrics, seed generators."""
    if isinstance(value, keras.random.SeedGenerator):
        return [value.state]
    own = list(value.variables)
    optimizer = getattr(value, "optimizer", None)
    return own if optimizer is None else own + list(optimizer.variables)


def _make_variables(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    name, parts = parts
    if type(old).__name__ != name:
        raise NotRebuiltError(f"the {name} does not exist before training begins")
    optimizer = getattr(old, "optimizer", None)
    if optimizer is not None and not optimizer.built and len(parts) > len(_variables_of(old)):
        optimizer.build(old.trainable_variables)
    variables = _variables_of(old)
    if len(variables) != len(parts):
        raise NotRebuiltError(f"the {name} has {len(variables)} variables instead of {len(parts)}")
    for variable, part in zip(variables, parts, strict=True):
        rebuild(part, variable)
    return old


def _keep(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    if old is None:
        raise NotRebuiltError("it belongs to the model, and is not there before training begins")
    return old


def _make_random(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    made = old if type(old) is random.Random else random.Random()
    made.setstate(rebuild(parts))
    return made


def _make_generator(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    state = rebuild(parts)
    made = old if type(old) is np.random.Generator else np.random.default_rng()
    if made.bit_generator.state["bit_generator"] != state["bit_generator"]:
        made = np.random.Generator(getattr(np.random, state["bit_generator"])())
    made.bit_generator.state = state
    return made


def _make_random_state(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    made = old if type(old) is np.random.RandomState else np.random.RandomState()
    made.set_state(rebuild(parts))
    return made


def _is_simple_object(value: Any) -> bool:
    """Tell whether an object is its attributes, as pickle would say."""
    kind = type(value)
    own_way = any(getattr(kind, name) is not getattr(object, name) for name in _PICKLING)
    roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
    if kind is object or own_way or not roots.isdisjoint(_FRAMEWORKS):
        return False
    try:
        make, arguments, _, items, pairs = value.__reduce_ex__(2)
    except TypeError:  # A lock, a file.
        return False
    return (make.__name__, arguments, items, pairs) == ("__newobj__", (kind,), None, None)


def _object_parts(value: Any) -> list[Any]:
    return [_reference(type(value)), _pairs(attributes_of(value))]


def _make_object(parts: Any, old: Any, rebuild: Rebuild) -> Any:
    reference, pairs = parts
    if old is None or _reference(type(old)) != reference:
        kind = _find(reference)
        old = kind.__new__(kind)
    present = attributes_of(old)
    for name, part in pairs:
        object.__setattr__(old, name, rebuild(part, present.get(name)))
    for name in present.keys() - {name for name, _ in pairs}:
        object.__delattr__(old, name)
    return old


def _items(value: Any) -> list[Any]:
    return list(value)


# By the name that a checkpoint has for them; the first that matches counts.
KINDS: dict[str, Kind] = {
    "numbers": Kind(_is_long_list, np.array, _make_long_list),
    "list": Kind(_exactly(list), _items, _make_list),
    "dict": _dict(dict),
    "tuple": Kind(_exactly(tuple), _items, lambda parts, old, rebuild: tuple(rebuild(parts))),
    "set": Kind(_exactly(set), lambda value: sorted(value, key=repr), _make_set),
    "frozenset": Kind(
        _exactly(frozenset),
        lambda value: sorted(value, key=repr),
        lambda parts, old, rebuild: frozenset(rebuild(parts)),
    ),
    "deque": Kind(_exactly(deque), lambda value: [value.maxlen, list(value)], _make_deque),
    "defaultdict": Kind(
        _exactly(defaultdict),
        lambda value: [value.default_factory, _pairs(value)],
        _make_defaultdict,
    ),
    "OrderedDict": _dict(OrderedDict),
    "Counter": _dict(Counter),
    "tensor": Kind(
        lambda value: isinstance(value, tf.Tensor) and hasattr(value, "numpy"),
        lambda value: value.numpy(),
        lambda parts, old, rebuild: tf.constant(rebuild(parts)),
    ),
    "variable": Kind(
        _instance(tf.Variable, keras.Variable), lambda value: value.numpy(), _make_variable
    ),
    "variables": Kind(
        _instance(
            keras.Layer,
            keras.metrics.Metric,
            keras.optimizers.Optimizer,
            keras.random.SeedGenerator,
        ),
        lambda value: [type(value).__name__, _variables_of(value)],
        _make_variables,
    ),
    "saved elsewhere": Kind(lambda value: False, lambda value: None, _keep),
    "random": Kind(_exactly(random.Random), lambda value: value.getstate(), _make_random),
    "generator": Kind(
        _exactly(np.random.Generator), lambda value: value.bit_generator.state, _make_generator
    ),
    "random state": Kind(
        _exactly(np.random.RandomState),
        lambda value: value.get_state(legacy=False),
        _make_random_state,
    ),
    "path": Kind(_instance(PurePath), str, lambda parts, old, rebuild: Path(parts)),
    "reference": Kind(_is_importable, _reference, _find),
    "namedtuple": Kind(
        lambda value: isinstance(value, tuple) and hasattr(value, "_fields"),
        lambda value: [type(value), list(value)],
        _make_namedtuple,
    ),
    "object": Kind(_is_simple_object, _object_parts, _make_object),
}
