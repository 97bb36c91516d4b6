"""Checks of arguments that the modules of this package share."""

from __future__ import annotations

import numbers
from typing import Any

from distrib.errors import ConfigurationError


def checked_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return an argument as an `int`; NumPy integers are accepted, booleans are not.

    Args:
        name: Name of the argument, for the error message.
        value: What the user passed.
        minimum: Smallest value allowed.
        maximum: Largest value allowed. Defaults to `None`: no upper bound.

    Raises:
        ConfigurationError: If the value is not an integer or out of bounds.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < minimum or (maximum is not None and value > maximum):
        bounds = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
        raise ConfigurationError(f"`{name}={value!r}` must be a whole number, {bounds}.")
    return int(value)
