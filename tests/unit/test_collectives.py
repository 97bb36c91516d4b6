import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from distrib import collectives
from distrib.collectives import ArrayCollectives, Bytes, ReduceOp


class Meeting:
    """Where the threads of a test hand each other their arrays."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.values: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        everybody = list(self.values)
        self.barrier.wait()
        return everybody


class Threads(ArrayCollectives):
    """Ranks that are threads; what a backend has to give, in its simplest form."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank)
        self.meeting, self.sent = meeting, 0

    def allreduce(self, value: npt.ArrayLike, op: ReduceOp = "sum") -> npt.NDArray[Any]:
        everybody = np.stack(self.meeting.exchange(self._rank, np.asarray(value)))
        return np.asarray(getattr(everybody, op)(axis=0))

    def _gather_bytes(self, value: Bytes) -> Bytes:
        return np.concatenate(self.meeting.exchange(self._rank, value))

    def _broadcast_bytes(self, value: Bytes, root: int) -> Bytes:
        self.sent += 1
        values = self.meeting.exchange(self._rank, value.copy())
        assert len({value.size for value in values}) == 1
        return values[root].copy()


def on_ranks(size: int, call: Callable[[Threads], Any]) -> list[Any]:
    meeting, results = Meeting(size), [None] * size
    ranks = [Threads(rank, meeting) for rank in range(size)]

    def run(rank: int) -> None:
        results[rank] = call(ranks[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_allgather_keeps_the_order_and_the_lengths() -> None:
    gathered = on_ranks(3, lambda those: those.allgather({"rank": those._rank, "x": "y" * 100}))
    assert [[item["rank"] for item in items] for items in gathered] == [[0, 1, 2]] * 3
    sizes = on_ranks(3, lambda those: those.allgather(b"z" * those._rank * 10))
    assert [len(item) for item in sizes[0]] == [0, 10, 20]


@pytest.mark.parametrize("root", [0, 1])
def test_broadcast_of_nested_arrays(root: int) -> None:
    def call(those: Threads) -> Any:
        mine = {"a": np.full((2, 3), those._rank, np.float32), "empty": np.zeros((0, 2)), "n": None}
        return those.broadcast(mine if those._rank == root else "anything else", root)

    for received in on_ranks(2, call):
        np.testing.assert_array_equal(received["a"], np.full((2, 3), root, np.float32))
        assert received["empty"].shape == (0, 2)
        assert received["n"] is None
        received["a"][0, 0] = 5  # Not a view of something read-only.


def test_large_arrays_travel_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_CHUNK", 1000)
    array = np.arange(1234, dtype=np.int16)

    def call(those: Threads) -> Any:
        received = those.broadcast(array if those._rank == 0 else None)
        return received, those.sent

    for received, sent in on_ranks(2, call):
        np.testing.assert_array_equal(received, array)
        assert sent == 2 + 1 + 3  # Counts, the pickle, and 2468 bytes.


def test_barrier_waits_for_all() -> None:
    arrived: list[int] = []

    def call(those: Threads) -> int:
        arrived.append(those._rank)
        those.barrier()
        return len(arrived)

    assert on_ranks(3, call) == [3, 3, 3]
