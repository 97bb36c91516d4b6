"""How processes agree: the collectives that every backend offers, and those of a single process.

Values are numpy arrays or small picklable objects, never device tensors: these calls carry
decisions and bookkeeping, not gradients. Every process of a job must make the same calls in the
same order. A process that fails does not tell the others: it ends, and their calls raise
`LostPeerError` then.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
ReduceOp = Literal["sum", "max", "min"]
Bytes = npt.NDArray[np.uint8]

_CHUNK = 1 << 28


class Collectives(Protocol):
    """What the processes of one job can do together."""

    def allreduce(self, value: npt.ArrayLike, op: ReduceOp = "sum") -> npt.NDArray[Any]:
        """Combine one array of every process elementwise; all receive the same result."""

    def broadcast(self, value: T, root: int = 0) -> T:
        """Give every process the object of process `root`."""

    def allgather(self, value: T) -> list[T]:
        """Give every process the objects of all processes, in the order of their ranks."""

    def barrier(self) -> None:
        """Return when every process has called it."""


class SingleProcess:
    """The collectives of a job that has one process: everything is already agreed."""

    def allreduce(self, value: npt.ArrayLike, op: ReduceOp = "sum") -> npt.NDArray[Any]:
        """Return `value` as an array."""
        return np.asarray(value)

    def broadcast(self, value: T, root: int = 0) -> T:
        """Return `value`."""
        return value

    def allgather(self, value: T) -> list[T]:
        """Return a list of `value` alone."""
        return [value]

    def barrier(self) -> None:
        """Return at once."""


class ArrayCollectives(ABC):
    """Collectives of objects, made of a backend's collectives of arrays.

    Large arrays within an object travel as they are, outside of its pickle, so that a checkpoint of
    gigabytes is broadcast without a second copy of it.

    Args:
        rank: This process's number.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank

    @abstractmethod
    def allreduce(self, value: npt.ArrayLike, op: ReduceOp = "sum") -> npt.NDArray[Any]:
        """Combine one array of every process elementwise; all receive the same result."""

    @abstractmethod
    def _gather_bytes(self, value: Bytes) -> Bytes:
        """Return the bytes of all processes, one after the other; lengths may differ."""

    @abstractmethod
    def _broadcast_bytes(self, value: Bytes, root: int) -> Bytes:
        """Return the bytes of process `root`; `value` has the same length everywhere."""

    def broadcast(self, value: T, root: int = 0) -> T:
        """Give every process the object of process `root`."""
        buffers: list[pickle.PickleBuffer] = []
        parts: list[Bytes] = []
        if self._rank == root:
            pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
            parts = [_bytes(pickled), *(_bytes(buffer.raw()) for buffer in buffers)]
        count = self._broadcast_sizes([len(parts)], 1, root)[0]
        sizes = self._broadcast_sizes([part.size for part in parts], count, root)
        parts = parts or [np.zeros(size, np.uint8) for size in sizes]
        received = [self._broadcast_part(part, root) for part in parts]
        if self._rank == root:
            return value
        return pickle.loads(received[0].data, buffers=received[1:])

    def allgather(self, value: T) -> list[T]:
        """Give every process the objects of all processes, in the order of their ranks."""
        pickled = _bytes(pickle.dumps(value, protocol=5))
        sizes = self._gather_bytes(np.array([pickled.size], np.int64).view(np.uint8)).view(np.int64)
        gathered = self._gather_bytes(pickled)
        pieces = np.split(gathered, np.cumsum(sizes)[:-1])
        return [pickle.loads(piece.data) for piece in pieces]

    def barrier(self) -> None:
        """Return when every process has called it."""
        self.allreduce(np.zeros(1, np.int32))

    def _broadcast_sizes(self, sizes: list[int], count: int, root: int) -> list[int]:
        mine = sizes if self._rank == root else [0] * count
        return [int(n) for n in self._broadcast_array(np.array(mine, np.int64), root)]

    def _broadcast_array(self, value: npt.NDArray[Any], root: int) -> npt.NDArray[Any]:
        return self._broadcast_bytes(value.view(np.uint8), root).view(value.dtype)

    def _broadcast_part(self, part: Bytes, root: int) -> Bytes:
        # In place, by pieces: what carries the bytes counts them in 32 bits.
        for start in range(0, part.size, _CHUNK):
            piece = part[start : start + _CHUNK]
            received = self._broadcast_bytes(piece, root)
            if self._rank != root:
                piece[:] = received
        return part


def _bytes(data: bytes | memoryview) -> Bytes:
    return np.frombuffer(data, np.uint8)
