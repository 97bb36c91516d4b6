"""Describes Python objects as JSON that is equal in every process that runs the same script.

So a description holds no address, no `repr` of an object and none of the numbers that Keras adds to
names. Functions and classes of the user's are described by a hash of their bytecode as well, which
does not change when code is moved or commented. Code of libraries is not: their versions say more.
"""

from __future__ import annotations

import datetime
import enum
import functools
import hashlib
import inspect
import json
import os
import re
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from distrib.checkpoint.training_item import unnumbered
from distrib.storage.location import Location

_INSTALLED = (sysconfig.get_path("stdlib"), "site-packages", "dist-packages")
# Where Keras would find a class. `__main__` may be called by its own name in another process.
_PLACES = frozenset({"module", "registered_name", "build_config", "shared_object_id"})
_MAX_TEXT, _MAX_ITEMS, _MAX_HASHED_BYTES = 200, 100, 2**20
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def describe(value: Any) -> Any:
    """Return a description of a value, JSON-able.

    Args:
        value: Anything. Plain values, lists, dicts, enums, dataclasses, paths and dates are
            described by what they hold, arrays by dtype, shape and a hash, Keras's objects by their
            config, functions by name and code, and all else by its class.

    Example:
    >>> describe({"rate": np.float32(0.5), "axes": (0, 1), "fn": keras.losses.mean_squared_error})
    {'rate': 0.5, 'axes': [0, 1], 'fn': 'mean_squared_error'}
    """
    match value:
        case enum.Enum():
            return f"{type(value).__qualname__}.{value.name}"
        case None | bool() | int() | float():
            return value
        case str() | os.PathLike():
            return _text(os.fspath(value))
        case np.generic() if value.dtype.kind in "biuf":
            return value.item()
        case datetime.date() | datetime.time() | datetime.timedelta():
            return str(value)
        case Mapping() if {"class_name", "config"} <= value.keys():
            return _serialized(value)
        case Mapping():
            return {str(key): describe(item) for key, item in value.items()}
        case list() | tuple():
            return _items(value)
        case set() | frozenset():
            return sorted(json.dumps(describe(item), sort_keys=True) for item in value)
        case type():
            return value.__qualname__
        case functools.partial():
            given = [*value.args, dict(value.keywords)]
            return {"function": describe(value.func), "arguments": describe(given)}
        case types.FunctionType() | types.MethodType() | types.BuiltinFunctionType():
            return _function(value)
        case _ if hasattr(value, "python_function"):  # A `tf.function`.
            return describe(value.python_function)
    return _array(value) or _object(value)


def describe_class(kind: type) -> dict[str, Any]:
    """Return the name of a class, and a hash of the code that the user has written for it."""
    own = [each for each in kind.__mro__ if not is_library(each)]
    described: dict[str, Any] = {"class": kind.__qualname__}
    if own:
        members = [member for each in own for member in sorted(vars(each).items(), key=_name_of)]
        described["code"] = digest(
            # Names of modules and docstrings are members as well.
            [[name, *_code_in(item)] for name, item in members if not _is_special(name, item)]
        )
    return described


def describe_config(value: Any) -> dict[str, Any]:
    """Return the class of a Keras object, and its config as far as it has one."""
    described = describe_class(type(value))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About loading, which never happens.
            config = value.get_config()
    except Exception as error:  # Of the user's code. A description must not cost a run.
        return {**described, "config": f"none ({type(error).__name__})"}
    return {**described, **_config(config)}


def constructor_arguments(kind: type) -> Iterator[str]:
    """Yield the names of the arguments of a class's constructor, and of those of its bases."""
    for each in kind.__mro__:
        if "__init__" in vars(each) and each is not object:
            yield from inspect.signature(vars(each)["__init__"]).parameters


def is_user_function(value: Any) -> bool:
    """Tell whether a value is a Python function, or a partial of one, from outside of libraries."""
    if isinstance(value, functools.partial):
        return is_user_function(value.func)
    return isinstance(value, types.FunctionType | types.MethodType) and not is_library(value)


def is_time(value: Any) -> bool:
    """Tell whether a value looks like what `time.time()` returns, which differs at each start."""
    return isinstance(value, float) and 1e9 < value < 1e10


def digest(value: Any) -> str:
    """Return a short hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _text(text: str) -> str:
    text = _USER_IN_URL.sub("", text)  # It may hold a password.
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({digest(text)})"


def _items(value: Sequence[Any]) -> list[Any]:
    items = [describe(item) for item in value]
    rest = items[_MAX_ITEMS:]
    return [*items[:_MAX_ITEMS], f"{len(rest)} more ({digest(rest)})"] if rest else items


@functools.cache
def _is_installed(module: str) -> bool:
    """Tell whether a module is not the user's own; `__main__` of a notebook has no file."""
    if module == "__main__":
        return False
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    return not path or module.startswith("distrib.") or any(part in path for part in _INSTALLED)


def is_library(value: Any) -> bool:
    """Tell whether a class or a function is not the user's own."""
    return _is_installed(str(getattr(value, "__module__", None)))


def _serialized(value: Mapping[str, Any]) -> Any:
    """Describe what `keras.saving.serialize_keras_object` has made of an object."""
    name, config = value["class_name"], value["config"]
    if name == "__lambda__":  # Holds the name of the script, and line numbers.
        return "<lambda>"
    if isinstance(config, Mapping):
        config = _config(config)
        return {"class": name, **config} if config else name
    return describe(config)


def _config(config: Any) -> dict[str, Any]:
    described = {
        str(key): describe(item) for key, item in dict(config).items() if key not in _PLACES
    }
    if isinstance(described.get("name"), str):
        described["name"] = unnumbered(described["name"])
    return described


def _name_of(member: tuple[str, Any]) -> str:
    return member[0]


def _is_special(name: str, item: Any) -> bool:
    return name.startswith("__") and not callable(item)


def _function(value: Any) -> str:
    name = str(getattr(value, "__qualname__", type(value).__qualname__))
    if not is_user_function(value):
        return name
    return f"{name} (code {digest([*_code_in(value)])})"


def _array(value: Any) -> str | None:
    """Describe an array or a tensor; `None` if it is neither."""
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        return None
    kind = getattr(value.dtype, "name", value.dtype)
    described = f"{kind} {tuple(value.shape)}"
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError):  # A symbolic tensor.
        return described
    if array.dtype.kind in "OV" or array.nbytes > _MAX_HASHED_BYTES:
        return described
    return f"{described} {hashlib.sha256(array.tobytes()).hexdigest()[:8]}"


def _object(value: Any) -> Any:
    if isinstance(value, Location):
        return _text(str(value))
    if is_dataclass(value):
        held = {field.name: getattr(value, field.name, None) for field in fields(value)}
        return {**describe_class(type(value)), **describe(held)}
    if isinstance(value, types.SimpleNamespace) or type(value).__name__ == "Namespace":
        return describe(vars(value))
    if hasattr(value, "get_config") and not hasattr(value, "layers"):
        return describe_config(value)
    return describe_class(type(value))


def _code_in(value: Any) -> Iterator[Any]:
    """Yield what is code in a member of a class, or in a function, JSON-able."""
    match value:
        case staticmethod() | classmethod() | types.MethodType():
            yield from _code_in(value.__func__)
        case property():
            yield from _code_in(value.fget)
        case functools.cached_property() | functools.partial():
            yield from _code_in(value.func)
        case types.FunctionType():
            yield _bytecode(value.__code__)
            yield [repr(each) for each in value.__defaults__ or () if is_number(each)]
            for cell in value.__closure__ or ():
                yield from _closed_over(cell)
            yield from _code_in(getattr(value, "__wrapped__", None))
        case bool() | int() | float() | str():
            yield repr(value)
        case _ if hasattr(value, "python_function"):  # A `tf.function`.
            yield from _code_in(value.python_function)


def _closed_over(cell: Any) -> Iterator[Any]:
    try:
        value = cell.cell_contents
    except ValueError:  # Not assigned yet.
        return
    if is_number(value) and not is_time(value):
        yield repr(value)


def is_number(value: Any) -> bool:
    """Tell whether a value is one of Python's numbers."""
    return isinstance(value, int | float)


def _bytecode(code: types.CodeType) -> list[Any]:
    """Return what a code object does, without where it stands and what its docstring says."""
    constants = list(code.co_consts)
    if constants and isinstance(constants[0], str) and code.co_name != "<lambda>":
        constants[0] = None  # The docstring.
    return [code.co_code.hex(), *code.co_names, *code.co_varnames, *map(_constant, constants)]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _bytecode(value)
    if isinstance(value, frozenset):  # Its order differs between processes.
        return sorted(map(repr, value))
    return repr(value)
