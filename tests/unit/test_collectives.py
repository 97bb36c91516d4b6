import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distrib import collectives as module
from distrib.collectives import (
    ArrayCollectives,
    Bytes,
    ReduceOp,
    ReportedCollectives,
    SingleProcess,
    reported,
)
from distrib.errors import ConfigurationError
from distrib.heartbeat import Heartbeat


class Exchange:
    """Exchanges arrays between the threads of a test."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.values: list[Any] = [None] * size

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        gathered = list(self.values)
        self.barrier.wait()
        return gathered


class ThreadCollectives(ArrayCollectives):
    """Collectives of ranks that are threads: the simplest implementation."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        super().__init__(rank)
        self.exchange, self.broadcasts = exchange, 0

    def _gather_bytes(self, value: Bytes) -> Bytes:
        return np.concatenate(self.exchange.gather(self._rank, value))

    def _broadcast_bytes(self, value: Bytes, root: int) -> Bytes:
        self.broadcasts += 1
        values = self.exchange.gather(self._rank, value.copy())
        assert len({value.size for value in values}) == 1
        return values[root].copy()


def on_ranks(size: int, call: Callable[[ThreadCollectives], Any]) -> list[Any]:
    exchange, results = Exchange(size), [None] * size
    ranks = [ThreadCollectives(rank, exchange) for rank in range(size)]

    def run(rank: int) -> None:
        results[rank] = call(ranks[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_allgather_keeps_the_order_and_the_lengths() -> None:
    gathered = on_ranks(3, lambda own: own.allgather({"rank": own._rank, "x": "y" * 100}))
    assert [[item["rank"] for item in items] for items in gathered] == [[0, 1, 2]] * 3
    sizes = on_ranks(3, lambda own: own.allgather(b"z" * own._rank * 10))
    assert [len(item) for item in sizes[0]] == [0, 10, 20]


@pytest.mark.parametrize("root", [0, 1])
def test_broadcast_of_nested_arrays(root: int) -> None:
    def call(own: ThreadCollectives) -> Any:
        mine = {
            "a": np.full((2, 3), own._rank, np.float32),
            "empty": np.zeros((0, 2)),
            "n": None,
        }
        return own.broadcast(mine if own._rank == root else "anything else", root)

    for received in on_ranks(2, call):
        np.testing.assert_array_equal(received["a"], np.full((2, 3), root, np.float32))
        assert received["empty"].shape == (0, 2)
        assert received["n"] is None
        received["a"][0, 0] = 5  # The received array is writable.


def test_large_arrays_are_broadcast_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1000)
    array = np.arange(1234, dtype=np.int16)

    def call(own: ThreadCollectives) -> Any:
        received = own.broadcast(array if own._rank == 0 else None)
        return received, own.broadcasts

    for received, broadcasts in on_ranks(2, call):
        np.testing.assert_array_equal(received, array)
        assert broadcasts == 1 + 3  # The pickle, and 2468 bytes.


def test_barrier_waits_for_all() -> None:
    arrived: list[int] = []

    def call(own: ThreadCollectives) -> int:
        arrived.append(own._rank)
        own.barrier()
        return len(arrived)

    assert on_ranks(3, call) == [3, 3, 3]


class Recorder(Heartbeat):
    """A heartbeat that keeps what it would send."""

    def __init__(self) -> None:
        super().__init__(fd=-1)
        self.sent: list[tuple[str, str] | None] = []

    def enter_collective(self, name: str, place: str) -> None:
        self.sent.append((name, place))

    def leave_collective(self) -> None:
        self.sent.append(None)


def test_collectives_are_reported_with_the_line_that_calls_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(module, "heartbeat", recorder)
    collectives = ReportedCollectives(SingleProcess())
    assert collectives.allgather(7) == [7]
    assert collectives.broadcast(8, 0) == 8
    assert collectives.allreduce(9, "max") == 9
    collectives.barrier()
    entered = [each for each in recorder.sent if each is not None]
    assert len(recorder.sent) == 2 * len(entered)
    names = [name for name, _ in entered]
    assert names == ["allgather", "broadcast from 0", "allreduce of max", "barrier"]
    assert entered[3][1].startswith("test_collectives.py:")
    assert entered[3][1].endswith(": `collectives.barrier()`")
    with pytest.raises(KeyError), reported("barrier"):  # So it is known where the rank failed.
        raise KeyError
    assert recorder.sent[-1] is not None


def test_a_mismatch_is_an_error_of_the_script() -> None:
    error = module.mismatch_error("{{function_node x}} Mismatched ALLREDUCE tensor shapes")
    assert error.exit_code == 78
    assert "different collectives: Mismatched ALLREDUCE tensor shapes. Each rank" in str(error)


@pytest.mark.parametrize(("op", "expected"), [("sum", 6), ("max", 3), ("min", 1)])
def test_allreduce(op: ReduceOp, expected: int) -> None:
    value = np.ones((2, 2), np.int16)
    for result in on_ranks(3, lambda own: own.allreduce(value * (own._rank + 1), op)):
        assert result.dtype == np.int16
        np.testing.assert_array_equal(result, value * expected)
    assert on_ranks(2, lambda own: own.allreduce(0.5).shape) == [(), ()]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda own: own.barrier(), lambda own: own.allgather(1)),
        (lambda own: own.broadcast(1), lambda own: own.allgather(1)),
        (lambda own: own.broadcast(1), lambda own: own.broadcast(1, root=1)),
        (lambda own: own.allreduce(1.0), lambda own: own.allreduce(1.0, "max")),
        (lambda own: own.allreduce(1.0), lambda own: own.allreduce([1.0, 2.0])),
        (lambda own: own.allreduce(np.float32(1)), lambda own: own.allreduce(np.float64(1))),
    ],
)
def test_different_calls_are_refused_on_every_rank(one: Any, other: Any) -> None:
    def call(own: ThreadCollectives) -> str:
        with pytest.raises(ConfigurationError) as caught:
            (other if own._rank == 1 else one)(own)
        own.barrier()  # And nothing of them is left.
        return str(caught.value)

    message, *others = on_ranks(3, call)
    assert others == [message] * 2
    assert re.search("different collectives: .* on rank 0, .* on rank 1, .* on rank 2", message)
