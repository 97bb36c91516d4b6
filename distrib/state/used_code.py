"""Describes what the user's functions use by name: other functions, and numbers.

The code of an augmentation stays the same when a function that it calls changes, or a constant of
the script.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any

from distrib.state.description import describe, is_library, is_number, is_time, is_user_function


def describe_used(value: Any) -> dict[str, Any]:
    """Describe what of the user's a function or a class uses by name: functions and numbers.

    What these functions use in turn is described as well. Texts are not, which may name a place.
    """
    used: dict[str, Any] = {}
    waiting = [value]
    while waiting:
        for name, each in _used_by(waiting.pop()):
            if name not in used and is_user_function(each):
                used[name] = describe(each)
                waiting.append(each)
            elif is_number(each) and not is_time(each):
                used[name] = each
    return dict(sorted(used.items()))


def _used_by(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names in the code of a function or a class, with the global or outer variables."""
    match value:
        case type():
            for each in value.__mro__:
                for member in () if is_library(each) else vars(each).values():
                    if not isinstance(member, type):
                        yield from _used_by(member)
        case staticmethod() | classmethod() | types.MethodType():
            yield from _used_by(value.__func__)
        case functools.partial():
            yield from _used_by(value.func)
        case types.FunctionType():
            outer = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
            for name in _names_in(value.__code__):
                if name in outer:
                    with contextlib.suppress(ValueError):  # Not assigned yet.
                        yield name, outer[name].cell_contents
                elif name in value.__globals__:
                    yield name, value.__globals__[name]
        case _ if hasattr(value, "python_function"):
            yield from _used_by(value.python_function)


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
