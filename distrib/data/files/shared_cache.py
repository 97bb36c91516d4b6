"""`SharedCache`: results that several threads need, each computed by one while the others wait."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SharedCache(Generic[Key, Value]):
    """Keeps the results that were used last. Its pickled copy is empty.

    Args:
        max_bytes: Results are dropped while those that are kept exceed this, except for the last.
        size_of: Returns the size of a result in bytes.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._max_bytes, self._size_of = max_bytes, size_of
        self._results: OrderedDict[Key, Future[Value]] = OrderedDict()
        self._sizes: dict[Key, int] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return SharedCache, (self._max_bytes, self._size_of)

    def __contains__(self, key: Key) -> bool:
        """Return whether a result is kept, or being computed."""
        return key in self._results

    def get(self, key: Key, compute: Callable[[], Value]) -> Value:
        """Return the result for a key, from `compute` unless it is kept. Errors are not kept."""
        with self._lock:
            result = self._results.get(key)
            is_mine = result is None
            if result is None:
                result = self._results[key] = Future()
            self._results.move_to_end(key)
        if is_mine:
            self._compute(key, result, compute)
        return result.result()

    def _compute(self, key: Key, result: Future[Value], compute: Callable[[], Value]) -> None:
        try:
            value = compute()
        except BaseException as error:
            with self._lock:
                del self._results[key]
            result.set_exception(error)
            return
        result.set_result(value)
        with self._lock:
            self._sizes[key] = self._size_of(value)
            for old in list(self._results):
                if sum(self._sizes.values()) <= self._max_bytes or old == key:
                    break
                if old in self._sizes:
                    del self._results[old], self._sizes[old]
