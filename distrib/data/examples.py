"""`Examples`: an object with random access, and the user's `map`.

An example comes about in two parts: the source is read (`fetch`), and `map` and the checks turn the
raw item into an example (`finish`). They are apart because they wait for different things, a disk
or a CPU, and because raw items depend on the index only, so that they can be fetched many at once
and ahead of their use.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.arrays import Array, at, leaves_with_paths, to_arrays
from distrib.errors import ConfigurationError


class Examples:
    """Reads examples, all of the structure, shapes and dtypes of example 0.

    Args:
        source: An object with `__len__` and a `__getitem__` that returns one raw item. If it has
            `__getitems__`, as datasets of PyTorch and Hugging Face do, that is called with a list
            of indices to fetch several items at once.
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
        self._fetch_many = getattr(source, "__getitems__", None)
        if len(self) == 0:
            raise ConfigurationError(f"`source` ({type(source).__name__}) has no examples.")
        try:
            example = self._example(source[0], 0, 0, 0)
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

    def fetch(self, index: Sequence[int]) -> list[Any]:
        """Return raw items, as the source holds them; errors are those of the source."""
        if self._fetch_many is None:
            return [self._source[i] for i in index]
        items = list(self._fetch_many(list(index)))
        if len(items) != len(index):
            raise ValueError(
                f"`__getitems__` of {type(self._source).__name__} returned {len(items)} items for "
                f"{len(index)} indices"
            )
        return items

    def read(self, index: int, epoch: int, seed: int) -> list[Array]:
        """Fetch and finish one example.

        Raises:
            RuntimeError: See `finish`; also if the source raises.
        """
        try:
            raw = self._source[index]
        except Exception as error:
            raise unreadable(index, error) from None
        return self.finish(raw, index, epoch, seed)

    def read_many(self, index: Sequence[int], epoch: int, seed: int) -> list[list[Array]]:
        """Fetch and finish examples, with one call of `__getitems__` if there is one.

        Raises:
            RuntimeError: See `read`.
        """
        if self._fetch_many is None:
            return [self.read(i, epoch, seed) for i in index]
        try:
            items = self.fetch(index)
        except Exception:
            # One by one, so that the error names the example that has it.
            return [self.read(i, epoch, seed) for i in index]
        return [self.finish(raw, i, epoch, seed) for raw, i in zip(items, index, strict=True)]

    def finish(self, raw: Any, index: int, epoch: int, seed: int) -> list[Array]:
        """Return the leaves of an example; their shapes and dtypes must be those of example 0.

        Raises:
            RuntimeError: If not, or if `map` raises. The message holds the traceback, because
                TensorFlow passes on the message only. TensorFlow would take a `StopIteration` for
                the end of the data, so that is converted as well.
        """
        try:
            example = self._example(raw, index, epoch, seed)
        except Exception as error:
            raise unreadable(index, error) from None
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

    def _example(self, raw: Any, index: int, epoch: int, seed: int) -> Any:
        if self._map is None:
            return to_arrays(raw)
        if not self._map_takes_rng:
            return to_arrays(self._map(raw))
        key = np.array([seed, epoch, index], np.uint64).view(np.uint32)
        return to_arrays(self._map(raw, rng=np.random.default_rng(key)))


def unreadable(index: int, error: BaseException) -> RuntimeError:
    """Return the error that names an example and holds the traceback of its cause."""
    return RuntimeError(
        f"Example {index} could not be read: {type(error).__name__}: {error}\n"
        f"{''.join(traceback.format_exception(error))}"
    )


def takes_rng(function: Callable[..., Any]) -> bool:
    """Tell whether the user's `map` has a parameter `rng`."""
    try:
        return "rng" in inspect.signature(function).parameters
    except ValueError:  # Some built-in functions have no signature.
        return False
