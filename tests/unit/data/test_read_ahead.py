import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import pytest

from distrib.data.read_ahead import read_ahead


def numbers_taken(limit: int | None, taken: list[int]) -> Iterator[int]:
    for number in count() if limit is None else range(limit):
        taken.append(number)
        yield number


def test_items_come_in_order_whichever_is_read_first() -> None:
    second = threading.Event()

    def read(number: int) -> int:
        if number == 0:
            assert second.wait(60)
        second.set()
        return -number

    assert list(read_ahead(read, range(5), ThreadPoolExecutor(2), 3)) == [0, -1, -2, -3, -4]


def test_it_reads_so_many_ahead_and_nothing_before_the_first_is_taken() -> None:
    taken: list[int] = []
    items = read_ahead(str, numbers_taken(None, taken), ThreadPoolExecutor(2), 3)
    assert taken == []
    assert list(islice(items, 2)) == ["0", "1"]
    assert taken == [0, 1, 2, 3, 4]


def test_an_error_comes_in_the_place_of_its_item() -> None:
    def read(number: int) -> float:
        return 1 / (2 - number)

    items = read_ahead(read, range(9), ThreadPoolExecutor(1), 9)
    assert [next(items), next(items)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_closing_drops_what_is_not_begun() -> None:
    begun, go_on = threading.Event(), threading.Event()
    read: list[int] = []

    def wait(number: int) -> None:
        read.append(number)
        if number == 1:
            begun.set()
            assert go_on.wait(60)

    pool = ThreadPoolExecutor(1)
    items: Any = read_ahead(wait, range(9), pool, 5)
    next(items)
    assert begun.wait(60)
    items.close()
    go_on.set()
    pool.shutdown(wait=True)
    assert read == [0, 1]
