"""Many processes with one replica each, on Horovod's core operations.

Horovod 0.28.1 is the newest release. Its Keras API does not work with Keras 3 (horovod issue 4290),
so this backend uses only the collectives of `horovod.tensorflow`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distrib.backends.devices import pin_gpu
from distrib.backends.forked import leave_to_parent
from distrib.backends.host_name import check_host_name
from distrib.collectives import (
    ArrayCollectives,
    Bytes,
    ReportedCollectives,
    mismatch_error,
    reported,
)
from distrib.errors import ConfigurationError, LostPeerError
from distrib.gradients.optimizer import accumulate, distribute
from distrib.gradients.reduction import Compression, Op, Reduction
from distrib.gradients.step_payload import StepPayload

# Milliseconds between Horovod's checks for tensors that are ready on all ranks. Its default of 1 is
# a tenth of a small model's step; below 0.5 a waiting rank costs more CPU time than the step gains.
CYCLE_VARIABLE, CYCLE_MILLISECONDS = "HOROVOD_CYCLE_TIME", "0.5"
CONTROLLER_VARIABLE = "HOROVOD_CONTROLLER"  # Set by what starts the ranks.


class HorovodBackend:
    """Trains as one of the processes that `horovodrun`, `mpirun` or `distrib run` started.

    Raises:
        ConfigurationError: If Horovod is not installed, this host has fewer GPUs than ranks, or its
            name has no address.
    """

    kind = "horovod"

    def __init__(self) -> None:
        self._hvd = hvd = _import_horovod()
        os.environ.setdefault(CYCLE_VARIABLE, CYCLE_MILLISECONDS)
        if os.environ.get(CONTROLLER_VARIABLE) == "gloo":
            check_host_name()
        with reported("distrib.init()"):
            hvd.init()
        leave_to_parent(hvd.shutdown)
        self.rank = int(hvd.rank())
        self.size = self.num_replicas = int(hvd.size())
        self.local_rank = int(hvd.local_rank())
        pin_gpu(self.local_rank)
        self.collectives = ReportedCollectives(HorovodCollectives(hvd))
        self.step_payload = StepPayload()

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context that does nothing."""
        return nullcontext()

    def optimizer(
        self,
        optimizer: Any,
        compression: Compression | None,
        backward_passes_per_step: int,
        op: Op,
    ) -> Any:
        """Make `optimizer` reduce gradients with one grouped allreduce."""
        if op == "adasum":
            self._check_adasum()
        return distribute(
            accumulate(optimizer, backward_passes_per_step),
            Reduction(
                self._allreduce,
                self.collectives,
                self.step_payload,
                compression,
                op,
                self._allgather,
            ),
        )

    def translate_error(self, error: BaseException) -> BaseException:
        """Return a `LostPeerError` for what Horovod raises when a peer is lost, else `error`."""
        return _translate_error(error, self.rank, self.size)

    def _allreduce(self, tensors: Sequence[Any], op: Op, name: str) -> Sequence[Any]:
        hvd = self._hvd
        if tensors[0].dtype == tf.bfloat16:
            return self._allreduce_bfloat16(tensors, op, name)
        if op == "average" and tensors[0].dtype == tf.float16:
            # Divides before it sums, because sums soon exceed float16's maximum of 65,504.
            return self._grouped_allreduce(tensors, name, hvd.Sum, prescale_factor=1 / self.size)
        if op == "adasum":
            # Horovod 0.28.1's grouped_allreduce raises UnboundLocalError for this operation.
            return [
                hvd.allreduce(tensor, op=hvd.Adasum, name=f"{name}.{i}", ignore_name_scope=True)
                for i, tensor in enumerate(tensors)
            ]
        return self._grouped_allreduce(tensors, name, hvd.Average if op == "average" else hvd.Sum)

    def _grouped_allreduce(
        self, tensors: Sequence[Any], name: str, op: Any, **factor: float
    ) -> Sequence[Any]:
        reduced: Sequence[Any] = self._hvd.grouped_allreduce(
            list(tensors), op=op, name=name, ignore_name_scope=True, **factor
        )
        return reduced

    def _allgather(
        self, values: Sequence[Any], indices: Sequence[Any], op: Op, name: str
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        dtype = values[0].dtype
        if dtype == tf.bfloat16:  # Horovod has no such dtype.
            values = [tf.bitcast(rows, tf.uint16) for rows in values]
        gather = functools.partial(self._hvd.grouped_allgather, ignore_name_scope=True)
        values = [tf.bitcast(rows, dtype) for rows in gather(list(values), name=f"{name}.values")]
        if op == "average":
            values = [rows / self.size for rows in values]
        return values, gather(list(indices), name=f"{name}.indices")

    def _allreduce_bfloat16(self, tensors: Sequence[Any], op: Op, name: str) -> Sequence[Any]:
        """Reduce bfloat16 tensors, which Horovod can send but not sum.

        Every rank receives one part of all ranks' numbers, sums it in float32 and sends the sum to
        all ranks: an allreduce in two collectives, which sends as many bytes.
        """
        sizes = [tf.size(tensor) for tensor in tensors]
        flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
        padded = tf.pad(flat, [[0, -tf.size(flat) % self.size]])
        splits = tf.fill([self.size], tf.size(padded) // self.size)
        sent = tf.bitcast(padded, tf.uint16)
        received, _ = self._hvd.alltoall(sent, splits, name=f"{name}.parts", ignore_name_scope=True)
        parts = tf.cast(tf.bitcast(tf.reshape(received, [self.size, -1]), tf.bfloat16), tf.float32)
        combined = tf.reduce_sum(parts, 0)
        if op == "average":
            combined /= self.size
        part = tf.bitcast(tf.cast(combined, tf.bfloat16), tf.uint16)
        gathered = self._hvd.allgather(part, name=f"{name}.sums", ignore_name_scope=True)
        whole = tf.bitcast(gathered, tf.bfloat16)[: tf.size(flat)]
        pieces = tf.split(whole, tf.stack(sizes))
        return [
            tf.reshape(piece, tf.shape(tensor))
            for piece, tensor in zip(pieces, tensors, strict=True)
        ]

    def _check_adasum(self) -> None:
        hvd = self._hvd
        if not (hvd.mpi_enabled() or hvd.nccl_built()):
            raise ConfigurationError(
                "`op='adasum'` needs Horovod on MPI or NCCL, and this job runs on Gloo; start it "
                "with mpirun, or choose 'average'."
            )
        if self.size & (self.size - 1):
            raise ConfigurationError(
                f"`op='adasum'` needs a number of ranks that is a power of two; this job has "
                f"{self.size}."
            )


class HorovodCollectives(ArrayCollectives):
    """Horovod's collectives for host memory.

    Args:
        hvd: The module `horovod.tensorflow`, after `hvd.init()`.
    """

    def __init__(self, hvd: ModuleType) -> None:
        super().__init__(int(hvd.rank()))
        self._hvd: Any = hvd

    def _gather_bytes(self, value: Bytes) -> Bytes:
        return self._run(lambda tensor: self._hvd.allgather(tensor, name="distrib.gather"), value)

    def _broadcast_bytes(self, value: Bytes, root: int) -> Bytes:
        name = f"distrib.broadcast.{root}"
        return self._run(lambda tensor: self._hvd.broadcast(tensor, root, name=name), value)

    def _run(self, collective: Any, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            with tf.device("CPU:0"):
                result = collective(tf.convert_to_tensor(value))
        except tf.errors.OpError as error:
            if "Mismatched" in str(error):
                raise mismatch_error(error.message) from error
            raise _translate_error(error, self._rank, int(self._hvd.size())) from error
        return np.array(result.numpy())


def _import_horovod() -> ModuleType:
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise ConfigurationError(
            f"Backend 'horovod' needs Horovod built for this TensorFlow ({error}). Run "
            "`distrib horovod build`."
        ) from error
    return hvd


def _translate_error(error: BaseException, rank: int, size: int) -> BaseException:
    # If a peer dies, leaves or becomes unreachable, Horovod shuts down on all ranks. Current and
    # later collectives then fail with this error type.
    if not isinstance(error, tf.errors.UnknownError) or "orovod" not in str(error):
        return error
    return LostPeerError.of(rank, size)
