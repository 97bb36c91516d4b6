"""Collectives of `MultiWorkerMirroredStrategy`'s workers, and how they fail.

They are TensorFlow's own operations, on the CPU and over the connections that the strategy has
made. Those operations know few dtypes, so everything travels as 32-bit words.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distrib.collectives import ArrayCollectives, Bytes, ReduceOp
from distrib.errors import LostPeerError

Words = npt.NDArray[np.int32]

# TensorFlow numbers the groups of its own collectives from 1.
_GROUP = 1 << 20
# Of the collective at the end, which must not be taken for one that others are still in.
_FAREWELL = 1 << 30
# 32-bit words sent at once: 64 MiB. Collectives of much more are slower, those of 2 GiB fail.
_PIECE = 1 << 24

# What TensorFlow raises when a peer is gone, and what it says then.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnavailableError,
)
_WORDS = ("Collective ops is aborted", "Collective has timed out", "remote target")


class WorkerCollectives(ArrayCollectives):
    """Collectives of host memory by TensorFlow's operations, over its connections.

    Args:
        rank: This process's number.
        size: Number of processes.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank)
        self._size = size
        self._count = 0

    def meet(self, seconds: float) -> None:
        """Return when all processes have called it.

        Raises:
            LostPeerError: If they have not done so after `seconds`.
        """
        self._gather_piece(np.zeros(1, np.int32), timeout_seconds=seconds)

    def part(self, seconds: float) -> None:
        """Wait for the other processes at the end, so that they receive what is on its way.

        To have sent something means here that it was handed over. Were this process to end now, the
        others might not get it.

        Args:
            seconds: How long to wait for processes that are not at their ends.
        """
        self._count = _FAREWELL
        with suppress(LostPeerError):  # They have ended.
            self.meet(seconds)

    def allreduce(self, value: npt.ArrayLike, op: ReduceOp = "sum") -> npt.NDArray[Any]:
        """Combine one array of every process elementwise; all receive the same result."""
        # Gathered, and combined by each: in the same order on all, whatever the dtype.
        array = np.asarray(value)
        rows = self._gather_rows(_words(np.frombuffer(array.tobytes(), np.uint8)))
        everybody = np.stack(
            [_bytes(row, array.nbytes).view(array.dtype).reshape(array.shape) for row in rows]
        )
        combine: Any = {"sum": np.sum, "max": np.max, "min": np.min}[op]
        return np.asarray(combine(everybody, axis=0), array.dtype)

    def _gather_bytes(self, value: Bytes) -> Bytes:
        sizes = self._gather_rows(np.array([value.size], np.int64).view(np.int32)).view(np.int64)
        longest = int(sizes.max())
        rows = self._gather_rows(_words(value, longest))
        return np.concatenate(
            [_bytes(row, size) for row, size in zip(rows, sizes[:, 0], strict=True)]
        )

    def _broadcast_bytes(self, value: Bytes, root: int) -> Bytes:
        words = _words(value)
        pieces = [self._broadcast_piece(piece, root) for piece in _pieces(words)]
        return _bytes(np.concatenate(pieces), value.size) if pieces else value

    def _gather_rows(self, words: Words) -> Words:
        """Return the words of all processes, one row each; all have the same number."""
        gathered = [self._gather_piece(piece) for piece in _pieces(words)]
        return np.concatenate([np.zeros((self._size, 0), np.int32), *gathered], axis=1)

    def _gather_piece(self, words: Words, timeout_seconds: float = 0) -> Words:
        gathered = self._run(
            tf.raw_ops.CollectiveGatherV2,
            input=words,
            ordering_token=[],
            timeout_seconds=timeout_seconds,
        )
        return gathered.reshape(self._size, words.size)

    def _broadcast_piece(self, words: Words, root: int) -> Words:
        if self._rank == root:
            self._run(tf.raw_ops.CollectiveBcastSendV2, input=words)
            return words
        return self._run(tf.raw_ops.CollectiveBcastRecvV2, shape=words.shape, T=tf.int32)

    def _run(self, operation: Any, **arguments: Any) -> Words:
        self._count += 1
        try:
            with tf.device("CPU:0"):
                result = operation(
                    group_size=self._size,
                    group_key=_GROUP,
                    instance_key=self._count,
                    communication_hint="ring",
                    **arguments,
                )
        except tf.errors.OpError as error:
            meant = translate(error, self._rank, self._size)
            raise meant from error
        return np.array(result.numpy())


def translate(error: BaseException, rank: int, size: int) -> BaseException:
    """Return `LostPeerError` for what TensorFlow raises when a peer is gone, else the same.

    Args:
        error: What was raised.
        rank: This process's number.
        size: Number of processes.
    """
    told = [line for line in str(error).splitlines() if any(words in line for words in _WORDS)]
    if not isinstance(error, _LOST) or not told:
        return error
    return LostPeerError.of(rank, size, told[0].rpartition("aborted by: ")[2].strip())


def _words(data: Bytes, size: int | None = None) -> Words:
    """Return bytes as words, with zeros up to `size` bytes and the end of a word."""
    size = data.size if size is None else size
    padded = np.zeros(-(-size // 4) * 4, np.uint8)
    padded[: data.size] = data
    return padded.view(np.int32)


def _bytes(words: Words, size: int) -> Bytes:
    return np.ascontiguousarray(words).view(np.uint8)[:size]


def _pieces(words: Words) -> list[Words]:
    return [words[start : start + _PIECE] for start in range(0, words.size, _PIECE)]
