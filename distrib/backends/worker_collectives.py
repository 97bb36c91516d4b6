"""Collectives of `MultiWorkerMirroredStrategy`'s workers, and the errors of a lost peer.

They use TensorFlow's collective operations on the CPU, over the connections that the strategy has
opened. Those operations support few dtypes, so all data travels as 32-bit words.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distrib.collectives import ArrayCollectives, Bytes, mismatch_error
from distrib.errors import LostPeerError

Words = npt.NDArray[np.int32]

# TensorFlow's own collectives use group keys from 1 on.
_GROUP_KEY = 1 << 20
# Instance key of the barrier at the end. No other collective has it, so a process that ends early
# does not match a collective in which others still are.
_SHUTDOWN_INSTANCE_KEY = 1 << 30
# 32-bit words in one collective: 64 MiB. Much larger collectives are slower; those of 2 GiB fail.
_CHUNK_WORDS = 1 << 24

# The errors that TensorFlow raises when a peer is lost, and what their messages contain.
_LOST_PEER_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnavailableError,
)
_LOST_PEER_MESSAGES = ("Collective ops is aborted", "Collective has timed out", "remote target")


class WorkerCollectives(ArrayCollectives):
    """TensorFlow's collectives for host memory, over the strategy's connections.

    Args:
        rank: This process's number, 0 to `size - 1`.
        size: Number of processes.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank)
        self._size = size
        self._instance_key = 0

    def rendezvous(self, timeout: float) -> None:
        """Wait until all processes have called this method.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            LostPeerError: If not all processes have called it in time.
        """
        self._gather_chunk(np.zeros(1, np.int32), timeout_seconds=timeout)

    def shutdown_barrier(self, timeout: float) -> None:
        """Wait at the end for the other processes, so that they receive all data sent to them.

        A collective returns when its data is queued for sending. If this process ended then, the
        others might not receive it.

        Args:
            timeout: Seconds to wait at most for processes that have not reached their ends.
        """
        self._instance_key = _SHUTDOWN_INSTANCE_KEY
        with suppress(LostPeerError):  # The others have ended.
            self.rendezvous(timeout)

    def _gather_bytes(self, value: Bytes) -> Bytes:
        sizes = self._gather_rows(np.array([value.size], np.int64).view(np.int32)).view(np.int64)
        longest = int(sizes.max())
        rows = self._gather_rows(_words(value, longest))
        return np.concatenate(
            [_bytes(row, size) for row, size in zip(rows, sizes[:, 0], strict=True)]
        )

    def _broadcast_bytes(self, value: Bytes, root: int) -> Bytes:
        words = _words(value)
        received = [self._broadcast_chunk(chunk, root) for chunk in _chunks(words)]
        return _bytes(np.concatenate(received), value.size) if received else value

    def _gather_rows(self, words: Words) -> Words:
        """Return the words of all processes, one row each; all processes send equally many."""
        gathered = [self._gather_chunk(chunk) for chunk in _chunks(words)]
        return np.concatenate([np.zeros((self._size, 0), np.int32), *gathered], axis=1)

    def _gather_chunk(self, words: Words, timeout_seconds: float = 0) -> Words:
        gathered = self._run(
            tf.raw_ops.CollectiveGatherV2,
            input=words,
            ordering_token=[],
            timeout_seconds=timeout_seconds,
        )
        return gathered.reshape(self._size, words.size)

    def _broadcast_chunk(self, words: Words, root: int) -> Words:
        if self._rank == root:
            self._run(tf.raw_ops.CollectiveBcastSendV2, input=words)
            return words
        return self._run(tf.raw_ops.CollectiveBcastRecvV2, shape=words.shape, T=tf.int32)

    def _run(self, operation: Any, **arguments: Any) -> Words:
        self._instance_key += 1
        try:
            with tf.device("CPU:0"):
                result = operation(
                    group_size=self._size,
                    group_key=_GROUP_KEY,
                    instance_key=self._instance_key,
                    communication_hint="ring",
                    **arguments,
                )
        except tf.errors.OpError as error:
            if "mismatch in the collective" in str(error):
                raise mismatch_error(error.message) from error
            raise translate_error(error, self._rank, self._size) from error
        return np.array(result.numpy())


def translate_error(error: BaseException, rank: int, size: int) -> BaseException:
    """Return a `LostPeerError` for what TensorFlow raises when a peer is lost, else `error`.

    Args:
        error: The exception.
        rank: This process's number, 0 to `size - 1`.
        size: Number of processes.
    """
    if not isinstance(error, _LOST_PEER_ERRORS):
        return error
    for line in str(error).splitlines():
        if any(message in line for message in _LOST_PEER_MESSAGES):
            return LostPeerError.of(rank, size, line.rpartition("aborted by: ")[2].strip())
    return error


def _words(data: Bytes, size: int | None = None) -> Words:
    """Return bytes as words, padded with zeros to `size` bytes and then to a whole word."""
    size = data.size if size is None else size
    padded = np.zeros(-(-size // 4) * 4, np.uint8)
    padded[: data.size] = data
    return padded.view(np.int32)


def _bytes(words: Words, size: int) -> Bytes:
    return np.ascontiguousarray(words).view(np.uint8)[:size]


def _chunks(words: Words) -> list[Words]:
    return [words[start : start + _CHUNK_WORDS] for start in range(0, words.size, _CHUNK_WORDS)]
