"""All kinds of Python values that can be saved, beside numbers, strings and arrays.

`container_kinds.py` says what a kind is.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distrib.state.container_kinds import (
    CONTAINERS,
    Kind,
    NotRebuiltError,
    Rebuild,
    exactly,
    pairs_of,
)

# Their objects have variables, threads and caches, which are not their attributes' business.
_FRAMEWORKS = ("keras", "tensorflow", "distrib")
_PICKLING = ("__reduce_ex__", "__reduce__", "__getstate__")


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


def _instance(*types: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types)


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
    return [_reference(type(value)), pairs_of(attributes_of(value))]


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


# By the name that a checkpoint has for them; the first that matches counts.
KINDS: dict[str, Kind] = {
    **CONTAINERS,
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
    "random": Kind(exactly(random.Random), lambda value: value.getstate(), _make_random),
    "generator": Kind(
        exactly(np.random.Generator), lambda value: value.bit_generator.state, _make_generator
    ),
    "random state": Kind(
        exactly(np.random.RandomState),
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
