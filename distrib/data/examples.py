"""`Examples`: an object with random access and the user's `map`, read one example at a time."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.arrays import Array, at, leaves_with_paths, to_arrays
from distrib.errors import ConfigurationError


class Examples:
    """Reads single examples, all of the structure, shapes and dtypes of example 0.

    Args:
        source: An object with `__len__` and a `__getitem__` that returns one example.
        map: Turns what the source holds into an example, or `None`; see `make_dataset`.

    Attributes:
        element_spec: Structure of `tf.TensorSpec`s of one example.

    Raises:
        ConfigurationError: If there is no example, or the first one cannot be read.
    """

    def __init__(self, source: Any, map: Callable[..., Any] | None) -> None:
        self._source = source
        self._map = map
        self._map_takes_rng = map is not None and takes_rng(map)
        if len(self) == 0:
            raise ConfigurationError(f"`source` ({type(source).__name__}) has no examples.")
        try:
            example = self._example(0, 0, 0)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"`source[0]`, or `map` of it, raised {type(error).__name__}: {error}"
            ) from error
        self.element_spec = tf.nest.map_structure(
            lambda array: tf.TensorSpec(array.shape, array.dtype), example
        )
        self._paths = [path for path, _ in leaves_with_paths(example)]

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int, epoch: int, seed: int) -> list[Array]:
        """Return the leaves of an example; their shapes and dtypes must be those of example 0.

        Raises:
            RuntimeError: If not, or if the user's code raises. The message holds the traceback,
                because TensorFlow passes on the message only. TensorFlow would take a
                `StopIteration` for the end of the data, so that is converted as well.
        """
        try:
            example = self._example(index, epoch, seed)
        except Exception as error:
            raise RuntimeError(
                f"Example {index} could not be read: {type(error).__name__}: {error}\n"
                f"{traceback.format_exc()}"
            ) from None
        parts = list(leaves_with_paths(example))
        if [path for path, _ in parts] != self._paths:
            raise RuntimeError(
                f"Example {index} has the parts {[path for path, _ in parts]}, but example 0 has "
                f"{self._paths}; return the same structure for all in `map`."
            )
        for (path, array), spec in zip(parts, tf.nest.flatten(self.element_spec), strict=True):
            if array.shape != tuple(spec.shape):
                raise RuntimeError(
                    f"Example {index} has shape {array.shape}{at(path)}, but example 0 has "
                    f"{tuple(spec.shape)}; pad or crop to one shape in `map`."
                )
            if tf.as_dtype(array.dtype) != spec.dtype:
                raise RuntimeError(
                    f"Example {index} has dtype {array.dtype}{at(path)}, but example 0 has "
                    f"{spec.dtype.name}; convert to one dtype in `map`."
                )
        return [array for _, array in parts]

    def _example(self, index: int, epoch: int, seed: int) -> Any:
        example = self._source[index]
        if self._map_takes_rng:
            assert self._map is not None
            key = np.array([seed, epoch, index], np.uint64).view(np.uint32)
            example = self._map(example, rng=np.random.default_rng(key))
        elif self._map is not None:
            example = self._map(example)
        return to_arrays(example)


def takes_rng(function: Callable[..., Any]) -> bool:
    """Tell whether the user's `map` has a parameter `rng`."""
    try:
        return "rng" in inspect.signature(function).parameters
    except ValueError:  # Some built-in functions have no signature.
        return False
