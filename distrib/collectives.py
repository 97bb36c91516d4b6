"""Collectives between the processes of a job, and those of a single process.

Values are numpy arrays or small picklable objects, never device tensors: these calls carry
decisions and bookkeeping, not gradients. Every process of a job must make the same calls in the
same order; different calls raise an error on all of them. A process that fails does not notify the
others; it ends, and their calls raise `LostPeerError`.
"""

from __future__ import annotations

import inspect
import linecache
import os
import pickle
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from distrib.errors import ConfigurationError
from distrib.heartbeat import heartbeat

T = TypeVar("T")
ReduceOp = Literal["sum", "max", "min"]
Bytes = npt.NDArray[np.uint8]

_CHUNK_BYTES = 1 << 28
_NODE = re.compile(r"\{\{.*?\}\} ?")  # TensorFlow's name of an operation.
# Folders of this package and of the standard library, with their real and with their given paths.
_LIBRARIES = tuple(
    os.path.dirname(path) + os.sep
    for file in (__file__, os.__file__)
    for path in (file, os.path.realpath(file))
)
# Lengths of the name of a call, and of what follows it.
_HEADER = struct.Struct("<qq")


class Collectives(Protocol):
    """Collective operations between the processes of a job."""

    def allreduce(self, value: npt.ArrayLike, op: ReduceOp = "sum") -> npt.NDArray[Any]:
        """Combine the arrays of all processes elementwise; all receive the same result."""

    def broadcast(self, value: T, root: int = 0) -> T:
        """Return the object of process `root` on every process."""

    def allgather(self, value: T) -> list[T]:
        """Return the objects of all processes, in the order of their ranks."""

    def barrier(self) -> None:
        """Wait until every process has called this method."""


class SingleProcess:
    """The collectives of a job with a single process."""

    def allreduce(self, value: npt.ArrayLike, op: ReduceOp = "sum") -> npt.NDArray[Any]:
        """Return `value` as an array."""
        return np.asarray(value)

    def broadcast(self, value: T, root: int = 0) -> T:
        """Return `value`."""
        return value

    def allgather(self, value: T) -> list[T]:
        """Return `[value]`."""
        return [value]

    def barrier(self) -> None:
        """Return at once."""


class ReportedCollectives:
    """Collectives whose begin and end this rank reports to its supervisor.

    Args:
        collectives: Of a backend.
    """

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives

    def allreduce(self, value: npt.ArrayLike, op: ReduceOp = "sum") -> npt.NDArray[Any]:
        """Combine the arrays of all processes elementwise; all receive the same result."""
        with reported(f"allreduce of {op}"):
            return self._collectives.allreduce(value, op)

    def broadcast(self, value: T, root: int = 0) -> T:
        """Return the object of process `root` on every process."""
        with reported(f"broadcast from {root}"):
            return self._collectives.broadcast(value, root)

    def allgather(self, value: T) -> list[T]:
        """Return the objects of all processes, in the order of their ranks."""
        with reported("allgather"):
            return self._collectives.allgather(value)

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        with reported("barrier"):
            self._collectives.barrier()


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Report that this rank waits in a collective; one that raises is never reported as left.

    Args:
        name: Of the collective.
    """
    if not heartbeat.connected:
        yield
        return
    heartbeat.enter_collective(name, _calling_line())
    yield
    heartbeat.leave_collective()


def mismatch_error(difference: str) -> ConfigurationError:
    """Return the error for calls of the ranks that do not match.

    Args:
        difference: Each rank's call, or what a backend has reported.
    """
    return ConfigurationError(
        f"The ranks have called different collectives: {_NODE.sub('', difference).rstrip('.')}. "
        "Each rank's traceback shows where. All ranks must make the same calls of `fit`, of "
        "`evaluate` on a cluster.dataset, and of collectives, in the same order (docs/ranks.md)."
    )


def _calling_line() -> str:
    """Return file, number and text of the script's line that has led here; empty without one."""
    frame = inspect.currentframe()
    while frame is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return ""
    path, number = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(path, number, frame.f_globals).strip()
    return f"{os.path.basename(path)}:{number}{text and f': `{text}`'}"


def _is_library(path: str) -> bool:
    return path.startswith((*_LIBRARIES, "<frozen ")) or f"{os.sep}site-packages{os.sep}" in path


class ArrayCollectives(ABC):
    """Collectives of objects, built on a backend's collectives of arrays.

    `broadcast` sends large arrays outside of the object's pickle, so that a checkpoint of gigabytes
    is broadcast without a second copy.

    Args:
        rank: This process's number.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank

    @abstractmethod
    def _gather_bytes(self, value: Bytes) -> Bytes:
        """Return the concatenated bytes of all processes; their lengths may differ."""

    @abstractmethod
    def _broadcast_bytes(self, value: Bytes, root: int) -> Bytes:
        """Return the bytes of process `root`; `value` has the same length on all processes."""

    def allreduce(self, value: npt.ArrayLike, op: ReduceOp = "sum") -> npt.NDArray[Any]:
        """Combine the arrays of all processes elementwise; all receive the same result."""
        # Each process combines all arrays, which sums in the same order on all of them.
        array = np.asarray(value)
        call = f"allreduce({op}) of {array.dtype} {array.shape}"
        parts = self._exchange(call, _bytes(array.tobytes()))
        arrays = [_bytes(part.tobytes()).view(array.dtype).reshape(array.shape) for part in parts]
        combine: Any = {"sum": np.sum, "max": np.max, "min": np.min}[op]
        return np.asarray(combine(arrays, axis=0), array.dtype)

    def broadcast(self, value: T, root: int = 0) -> T:
        """Return the object of process `root` on every process."""
        buffers: list[pickle.PickleBuffer] = []
        parts: list[Bytes] = []
        if self._rank == root:
            pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
            parts = [_bytes(pickled), *(_bytes(buffer.raw()) for buffer in buffers)]
        sizes = np.array([part.size for part in parts], np.int64)
        sent = self._exchange(f"broadcast from rank {root}", sizes.view(np.uint8))
        sizes = _bytes(sent[root].tobytes()).view(np.int64)
        parts = parts or [np.zeros(size, np.uint8) for size in sizes]
        received = [self._broadcast_part(part, root) for part in parts]
        if self._rank == root:
            return value
        return pickle.loads(received[0].data, buffers=received[1:])

    def allgather(self, value: T) -> list[T]:
        """Return the objects of all processes, in the order of their ranks."""
        parts = self._exchange("allgather", _bytes(pickle.dumps(value, protocol=5)))
        return [pickle.loads(part.data) for part in parts]

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        self._exchange("barrier", np.zeros(0, np.uint8))

    def _exchange(self, call: str, payload: Bytes) -> list[Bytes]:
        """Return the bytes of all processes, each beginning with what its process is doing.

        Every collective begins with this one, so that processes that make different calls find
        out, instead of waiting for each other.

        Raises:
            ConfigurationError: If a process has made another call.
        """
        name = call.encode()
        header = _bytes(_HEADER.pack(len(name), payload.size) + name)
        gathered = self._gather_bytes(np.concatenate([header, payload]))
        calls, parts, start = [], [], 0
        while start < gathered.size:
            length, size = _HEADER.unpack_from(gathered.data, start)
            start += _HEADER.size
            calls.append(gathered[start : start + length].tobytes().decode())
            start += length
            parts.append(gathered[start : start + size])
            start += size
        if len(set(calls)) > 1:
            by_rank = ", ".join(f"{name} on rank {rank}" for rank, name in enumerate(calls))
            raise mismatch_error(by_rank)
        return parts

    def _broadcast_part(self, part: Bytes, root: int) -> Bytes:
        # In place and in chunks, because the backends count bytes in 32 bits.
        for start in range(0, part.size, _CHUNK_BYTES):
            chunk = part[start : start + _CHUNK_BYTES]
            received = self._broadcast_bytes(chunk, root)
            if self._rank != root:
                chunk[:] = received
        return part


def _bytes(data: bytes | memoryview) -> Bytes:
    return np.frombuffer(data, np.uint8)
