"""How processes agree: the collectives that every backend offers, and those of a single process.

Values are numpy arrays or small picklable objects, never device tensors: these calls carry
decisions and bookkeeping, not gradients. Every process of a job must make the same calls in the
same order.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
ReduceOp = Literal["sum", "max", "min"]


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
