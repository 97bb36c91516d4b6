"""Nested Python state as JSON plus arrays, and back without losing a bit.

Callbacks keep counters, floats, lists of numbers and weights in one nested structure. JSON holds
everything but the arrays exactly (Python prints floats so that they read back equal, NaN and
infinities included); arrays are moved out, to be stored beside the model's own, and a reference
takes their place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

_ARRAY = "__array__"
_EMPTY = "__empty_array__"
_SCALAR = "__numpy_scalar__"
_TUPLE = "__tuple__"


def encode(value: Any, name: str) -> tuple[Any, Arrays]:
    """Separate a nested structure into JSON and arrays.

    Args:
        value: None, bool, int, float, str, numpy arrays and scalars of numeric or boolean dtype,
            and lists, tuples and str-keyed dicts of these.
        name: What the structure is called; array keys begin with it, errors name it.

    Returns:
        The JSON-able structure, and the arrays by key.

    Raises:
        TypeError: If a value has another type; the message says where it stands.

    Example:
    >>> encode({"wait": 2, "best": np.ones(3)}, "stop")
    ({'wait': 2, 'best': {'__array__': 'stop/best'}}, {'stop/best': array([1., 1., 1.])})
    """
    arrays: Arrays = {}
    return _encode(value, name, arrays), arrays


def decode(value: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    """Undo `encode`.

    Raises:
        KeyError: If an array is missing.
    """
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return arrays[value[_ARRAY]]
    if _EMPTY in value:
        dtype, shape = value[_EMPTY]
        return np.empty(shape, dtype)
    if _SCALAR in value:
        dtype, number = value[_SCALAR]
        return np.dtype(dtype).type(number)
    if _TUPLE in value:
        return tuple(decode(item, arrays) for item in value[_TUPLE])
    return {key: decode(item, arrays) for key, item in value.items()}


def digest(value: Any) -> str:
    """Return what tells structures that `encode` takes apart."""
    encoded, arrays = encode(value, "")
    sha256 = hashlib.sha256(json.dumps(encoded).encode())
    for name, array in arrays.items():
        sha256.update(name.encode() + array.tobytes())
    return sha256.hexdigest()


def is_array(value: Any) -> bool:
    """Tell whether a value is an array of numbers, those of `ml_dtypes` (bfloat16) included."""
    if not isinstance(value, np.ndarray):
        return False
    return value.dtype.kind not in "OUSVmM" or value.dtype.isbuiltin == 2


def is_scalar(value: Any) -> bool:
    """Tell whether a value is a numpy number."""
    return isinstance(value, np.generic) and value.dtype.kind in "biuf"


def _encode(value: Any, name: str, arrays: Arrays) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if is_array(value):
        return _encode_array(value, name, arrays)
    if is_scalar(value):
        return {_SCALAR: [value.dtype.name, value.item()]}
    if isinstance(value, list):
        return [_encode(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _encode(item, f"{name}/{key}", arrays) for key, item in value.items()}
    raise TypeError(
        f"{name} cannot be kept in a checkpoint: it is a {type(value).__name__} ({value!r:.80}). "
        "State may hold None, bool, int, float, str, numpy arrays of numbers, and lists, tuples "
        "and str-keyed dicts of these."
    )


def _encode_array(value: npt.NDArray[Any], name: str, arrays: Arrays) -> Any:
    if value.size == 0:  # Orbax refuses arrays without elements.
        return {_EMPTY: [value.dtype.name, list(value.shape)]}
    arrays[name] = value
    return {_ARRAY: name}
