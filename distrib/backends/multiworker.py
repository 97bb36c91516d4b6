"""Many processes with one replica each: `tf.distribute.MultiWorkerMirroredStrategy`.

It needs nothing but TensorFlow, which includes NCCL for GPUs. `worker_strategy.py` says which parts
of the strategy are used.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from distrib.backends.devices import pin_gpu
from distrib.backends.forked import leave_to_parent
from distrib.backends.peer_monitor import PeerMonitor
from distrib.backends.worker_collectives import WorkerCollectives, translate_error
from distrib.backends.worker_strategy import WorkerStrategy
from distrib.collectives import ReportedCollectives, reported
from distrib.environment import tf_config
from distrib.errors import ConfigurationError, LostPeerError
from distrib.gradients.optimizer import accumulate, distribute
from distrib.gradients.reduction import Compression, Op, Reduction
from distrib.gradients.step_payload import StepPayload
from distrib.keras_compat import strategy_faults
from distrib.keras_compat.optimizers import disable_sum_over_replicas
from distrib.units import parse_duration

START_TIMEOUT_VARIABLE = "DISTRIB_START_TIMEOUT_SECONDS"
START_TIMEOUT_SECONDS = 600.0
PEER_TIMEOUT_VARIABLE = "DISTRIB_PEER_TIMEOUT_SECONDS"
PEER_TIMEOUT_SECONDS = 30.0
SHUTDOWN_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerAddresses:
    """This process's rank and the addresses of all workers, from TF_CONFIG.

    Attributes:
        rank: This process's number: the chief is 0, the workers follow.
        addresses: `host:port` of all processes, in the order of their ranks.
        peers: TensorFlow's names of the other processes.
    """

    rank: int
    addresses: Sequence[str]
    peers: Sequence[str]

    @property
    def local_rank(self) -> int:
        """This process's number among those on its host."""
        hosts = [address.rpartition(":")[0] for address in self.addresses]
        return hosts[: self.rank].count(hosts[self.rank])


class MultiWorkerBackend:
    """Trains as one of the workers that TF_CONFIG names; waits until all have connected.

    Raises:
        ConfigurationError: If TF_CONFIG does not describe this process as a worker, or TensorFlow
            has started already.
        LostPeerError: If not all workers have connected in time.
    """

    kind = "multiworker"

    def __init__(self) -> None:
        workers = worker_addresses()
        start_timeout = _seconds(START_TIMEOUT_VARIABLE, START_TIMEOUT_SECONDS)
        peer_timeout = _seconds(PEER_TIMEOUT_VARIABLE, PEER_TIMEOUT_SECONDS)
        self.rank = workers.rank
        self.size = self.num_replicas = len(workers.addresses)
        self.local_rank = workers.local_rank
        self._strategy = _make_strategy(workers.local_rank)
        self._workers = WorkerCollectives(self.rank, self.size)
        self.collectives = ReportedCollectives(self._workers)
        with reported("distrib.init()"):
            self._rendezvous(start_timeout, workers.addresses)
        PeerMonitor(workers.peers, peer_timeout).start()
        atexit.register(self._shutdown)
        leave_to_parent(self._shutdown)
        self.step_payload = StepPayload()
        strategy_faults.build_by_element_spec()
        strategy_faults.keep_results_of_steps()

    def scope(self) -> AbstractContextManager[Any]:
        """Return the strategy's scope."""
        scope: AbstractContextManager[Any] = self._strategy.scope()
        return scope

    def optimizer(
        self,
        optimizer: Any,
        compression: Compression | None,
        backward_passes_per_step: int,
        op: Op,
    ) -> Any:
        """Make `optimizer` reduce gradients with one batched allreduce instead of Keras's own."""
        if op == "adasum":
            raise ConfigurationError(
                "`op='adasum'` needs Horovod on MPI or NCCL, and TF_CONFIG starts no Horovod; "
                "choose 'average' or 'sum'."
            )
        distribute(
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
        # It is wrapped in the scope of its model, but may have been created in another one.
        disable_sum_over_replicas(optimizer, tf.distribute.get_strategy())
        return optimizer

    def translate_error(self, error: BaseException) -> BaseException:
        """Return a `LostPeerError` for what TensorFlow raises when a peer is lost, else `error`."""
        return translate_error(error, self.rank, self.size)

    def _rendezvous(self, timeout: float, addresses: Sequence[str]) -> None:
        try:
            self._workers.rendezvous(timeout)
        except LostPeerError as error:
            raise LostPeerError(
                f"rank {self.rank} of {self.size} has waited {timeout:g} s for all of "
                f"{', '.join(addresses)}. Start the job again; {START_TIMEOUT_VARIABLE} sets a "
                f"longer timeout (exit code {LostPeerError.exit_code})."
            ) from error

    def _shutdown(self) -> None:
        # The interpreter sets `last_type` when it reports an uncaught exception. The other workers
        # have not reached their ends then, and must notice the loss of this one at once.
        if not hasattr(sys, "last_type"):
            with reported("shutdown"):
                self._workers.shutdown_barrier(SHUTDOWN_TIMEOUT_SECONDS)

    def _allreduce(self, tensors: Sequence[Any], op: Op, name: str) -> Sequence[Any]:
        return self._strategy.all_reduce([self._weighted(tensor, op) for tensor in tensors])

    def _allgather(
        self, values: Sequence[Any], indices: Sequence[Any], op: Op, name: str
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        dtype = values[0].dtype
        weighted = [self._weighted(rows, op) for rows in values]
        if dtype == tf.bfloat16:  # This collective lacks the dtype, and only moves the bits.
            weighted = [tf.bitcast(rows, tf.float16) for rows in weighted]
        gathered = self._strategy.all_reduce(
            [tf.IndexedSlices(*parts) for parts in zip(weighted, indices, strict=True)]
        )
        return [tf.bitcast(s.values, dtype) for s in gathered], [s.indices for s in gathered]

    def _weighted(self, tensor: Any, op: Op) -> Any:
        """Scale a tensor so that its sum over all workers is the result of `op`."""
        # Keras has divided the loss by this number: the size in the strategy's scope, 1 outside.
        divisor = tf.distribute.get_strategy().num_replicas_in_sync
        factor = divisor if op == "sum" else divisor / self.size
        return tensor if factor == 1 else tensor * tf.cast(factor, tensor.dtype)


def worker_addresses(environment: Mapping[str, str] = os.environ) -> WorkerAddresses:
    """Return the workers that TF_CONFIG names, and this process's rank among them.

    Args:
        environment: Environment variables of the process. Defaults to `os.environ`.

    Raises:
        ConfigurationError: If there is no TF_CONFIG, or this process is not one of its workers.
    """
    config = tf_config(environment)
    if not config.workers:
        raise ConfigurationError(
            "Backend 'multiworker' needs TF_CONFIG in the environment, which names the workers; "
            "start the script with `distrib run --backend multiworker`, or see docs/multiworker.md."
        )
    counts = {job: len(config.cluster.get(job, ())) for job in ("chief", "worker")}
    unsupported = [job for job in (*config.cluster, config.task_type) if job not in counts]
    if unsupported:
        raise ConfigurationError(
            f"TF_CONFIG has a task of type {unsupported[0]!r}; this backend supports only 'chief' "
            "and 'worker', which all train."
        )
    if not 0 <= config.task_index < counts[config.task_type]:
        raise ConfigurationError(
            f"TF_CONFIG has the task {config.task_type} {config.task_index}, but its cluster has "
            f"{counts[config.task_type]} of that type."
        )
    names = [_task_name(job, index) for job, count in counts.items() for index in range(count)]
    rank = names.index(_task_name(config.task_type, config.task_index))
    return WorkerAddresses(rank, config.workers, names[:rank] + names[rank + 1 :])


def _task_name(job: str, index: int) -> str:
    return f"/job:{job}/replica:0/task:{index}"


def _make_strategy(local_rank: int) -> WorkerStrategy:
    try:
        pin_gpu(local_rank)
        return WorkerStrategy()
    except RuntimeError as error:
        raise ConfigurationError(
            "TensorFlow has started already, and can no longer join other workers; call "
            "distrib.init() before anything else uses TensorFlow."
        ) from error


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigurationError(f"{name}={error}.") from error
