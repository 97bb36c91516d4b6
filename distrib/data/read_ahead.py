"""Reads items by number on several threads, ahead of whoever takes them, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any


def read_ahead(
    read: Callable[[int], Any], numbers: Iterable[int], pool: Executor, ahead: int
) -> Iterator[Any]:
    """Yield `read(number)` for each number, in their order.

    Nothing is read before the first item is taken. An error of `read` is raised in the place of its
    item. Closing the iterator drops what has not begun to be read.

    Args:
        read: Called in the pool.
        numbers: Which items; may be endless.
        pool: Shut down at the end. Shut it down before to stop the reading.
        ahead: Number of items that are read, or wait to be taken, at any time.
    """
    numbers = iter(numbers)
    pending: deque[Future[Any]] = deque()
    try:
        pending.extend(pool.submit(read, number) for number in islice(numbers, ahead))
        while pending:
            item = pending.popleft().result()
            pending.extend(pool.submit(read, number) for number in islice(numbers, 1))
            yield item
    finally:
        # Without waiting: TensorFlow closes the iterator where other threads wait for it.
        pool.shutdown(wait=False, cancel_futures=True)
