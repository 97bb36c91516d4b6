"""`Examples`: an object with random access, and the user's `map`.

An example comes about in two parts: the source is read (`fetch`), and `map` and the checks turn the
raw item into an example (`finish`). They are apart because they wait for different things, a disk
or a CPU, and because raw items depend on the index only, so that they can be fetched many at once
and ahead of their use, and in another process than `map`. Worker processes use this module without
TensorFlow.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distrib.data.arrays import Array, at, leaves_with_paths, to_arrays
from distrib.errors import ConfigurationError
from distrib.log import log

Leaves = list[tuple[str, tuple[int, ...], np.dtype[Any]]]


class Examples:
    """Reads examples, all of the structure, shapes and dtypes of example 0.

    Args:
        source: An object with `__len__` and a `__getitem__` that returns one raw item. If it has
            `__getitems__`, as datasets of PyTorch and Hugging Face do, that is called with a list
            of indices to fetch several items at once.
        map: Turns what the source holds into an example, or `None`; see `make_dataset`.
        leaves: The attribute of this name of another `Examples`. Defaults to `None`: found out from
            example 0, and so is `element_spec`.

    Attributes:
        element_spec: Structure of `tf.TensorSpec`s of one example.
        leaves: Path, shape and NumPy dtype of each leaf of one example.

    Raises:
        ConfigurationError: If there is no example, or the first one cannot be read.
    """

    element_spec: Any

    def __init__(
        self, source: Any, map: Callable[..., Any] | None, leaves: Leaves | None = None
    ) -> None:
        self._source = source
        self._map = map
        self._map_takes_rng = map is not None and takes_rng(map)
        self._fetch_many = getattr(source, "__getitems__", None)
        if leaves is None:
            example = self._example_0()
            self.element_spec = _specs_of(example)
            leaves = [
                (path, array.shape, _native(array.dtype))
                for path, array in leaves_with_paths(example)
            ]
        self.leaves = leaves

    def __len__(self) -> int:
        return len(self._source)

    @property
    def fetches_many(self) -> bool:
        """Whether the source can fetch several items at once."""
        return self._fetch_many is not None

    def fetch(self, index: Sequence[int]) -> list[Any]:
        """Return raw items, as the source holds them; errors are those of the source."""
        if self._fetch_many is None:
            return [self._source[i] for i in index]
        try:
            items = list(self._fetch_many(list(index)))
            if len(items) != len(index):
                raise ValueError(f"{len(items)} items for {len(index)} indices")
        except Exception as error:
            log.warning(
                f"`__getitems__` of {type(self._source).__name__} failed: {type(error).__name__}: "
                f"{error}. Its {len(index)} examples are read one by one."
            )
            raise
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

    def read_many(
        self,
        index: Sequence[int],
        epoch: int,
        seed: int,
        raw: Mapping[int, Any] | None = None,
        started: Callable[[int], None] = lambda index: None,
    ) -> list[list[Array]]:
        """Fetch and finish examples.

        Args:
            index: Numbers of the examples.
            epoch: Epoch that they are for.
            seed: Seed of the `rng` of `map`.
            raw: Raw items by their position in `index`; others are fetched one by one. Defaults to
                `None`: all are fetched, with one call of `__getitems__` if there is one.
            started: Called with the number of each example before it is read. Defaults to a
                function that does nothing.

        Raises:
            RuntimeError: See `read`.
        """
        if raw is None:
            started(index[0])
            raw = self._fetched(index)
        examples = []
        for position, i in enumerate(index):
            started(i)
            if position in raw:
                examples.append(self.finish(raw[position], i, epoch, seed))
            else:
                examples.append(self.read(i, epoch, seed))
        return examples

    def _fetched(self, index: Sequence[int]) -> Mapping[int, Any]:
        if self._fetch_many is None:
            return {}
        try:
            return dict(enumerate(self.fetch(index)))
        except Exception:
            return {}  # One by one, so that the error names the example that has it.

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
        paths = [path for path, *_ in self.leaves]
        if [path for path, _ in parts] != paths:
            raise RuntimeError(
                f"Example {index} has the parts {[path for path, _ in parts]}, but example 0 has "
                f"{paths}; return the same structure for all in `map`."
            )
        for (path, array), (_, shape, dtype) in zip(parts, self.leaves, strict=True):
            if array.shape != shape:
                raise RuntimeError(
                    f"Example {index} has shape {array.shape}{at(path)}, but example 0 has "
                    f"{shape}; pad or crop to one shape in `map`."
                )
            if _native(array.dtype) != dtype:
                raise RuntimeError(
                    f"Example {index} has dtype {_name(array.dtype)}{at(path)}, but example 0 has "
                    f"{_name(dtype)}; convert to one dtype in `map`."
                )
        return [array for _, array in parts]

    def _example_0(self) -> Any:
        if len(self) == 0:
            raise ConfigurationError(f"`source` ({type(self._source).__name__}) has no examples.")
        try:
            return self._example(self._source[0], 0, 0, 0)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"`source[0]`, or `map` of it, raised {type(error).__name__}: {error}"
            ) from error

    def _example(self, raw: Any, index: int, epoch: int, seed: int) -> Any:
        if self._map is None:
            return to_arrays(raw)
        if not self._map_takes_rng:
            return to_arrays(self._map(raw))
        key = np.array([seed, epoch, index], np.uint64).view(np.uint32)
        return to_arrays(self._map(raw, rng=np.random.default_rng(key)))


def of_part(raw: Mapping[int, Any] | None, part: slice) -> Mapping[int, Any] | None:
    """Return the raw items of a part of the examples, by their position in the part."""
    if raw is None:
        return None
    return {row - part.start: raw[row] for row in range(part.start, part.stop) if row in raw}


def _specs_of(example: Any) -> Any:
    import tensorflow as tf

    return tf.nest.map_structure(lambda array: tf.TensorSpec(array.shape, array.dtype), example)


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("=")


def _name(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.hasobject else dtype.name


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
