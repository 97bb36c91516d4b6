"""`ItemPool`: the items of an object, such as batches of a `PyDataset`, from worker processes."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from distrib.data.workers.pickling import Pickled
from distrib.data.workers.pool import WorkerPool


class ItemPool:
    """Calls `__getitem__` of an object in worker processes, which have it as it is now.

    Args:
        items: The object.
        num_workers: Number of processes.
        unit: What an item is, for error messages. Defaults to `"batch"`.

    Raises:
        ConfigurationError: If the object cannot be pickled.
    """

    def __init__(self, items: Any, num_workers: int, unit: str = "batch") -> None:
        pickled = Pickled({type(items).__name__: items})
        self._pool = WorkerPool(pickled, _Item, num_workers, unit)

    def get(self, index: int) -> Any:
        """Wait for an item: nested tuples, lists and dicts of arrays. For any number of threads.

        Raises:
            RuntimeError: If `__getitem__` raises, with its traceback, or the worker dies.
        """
        return self._pool.submit(index, copy.deepcopy).result()


class _Item:
    """The task of the workers; see `Task`."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        ((self._name, self._items),) = objects.items()

    def __call__(self, request: int, started: Callable[[int], None]) -> Any:
        started(request)
        try:
            return self._items[request]
        except Exception as error:
            raise RuntimeError(
                f"{self._name}[{request}] raised {type(error).__name__}: {error}\n"
                f"{traceback.format_exc()}"
            ) from None
