"""Many processes, one replica each: `tf.distribute.MultiWorkerMirroredStrategy`.

It needs nothing but TensorFlow, which brings NCCL for GPUs. What of it is used, and what not, is in
`worker_strategy.py`.
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

from distrib.backends.devices import take_gpu
from distrib.backends.peers import PeerMonitor
from distrib.backends.worker_collectives import WorkerCollectives, translate
from distrib.backends.worker_strategy import WorkerStrategy
from distrib.environment import tf_config
from distrib.errors import ConfigurationError, LostPeerError
from distrib.gradients.optimizer import accumulate, distribute
from distrib.gradients.reduction import Compression, Op, Reduction
from distrib.gradients.step_payload import StepPayload
from distrib.keras_compat import strategy_faults
from distrib.keras_compat.optimizers import leave_sum_over_replicas_out
from distrib.units import parse_duration

START_VARIABLE = "DISTRIB_START_TIMEOUT_SECONDS"
START_SECONDS = 600.0
PEER_VARIABLE = "DISTRIB_PEER_TIMEOUT_SECONDS"
PEER_SECONDS = 30.0
PART_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerAddresses:
    """This process's place among the workers that TF_CONFIG names.

    Attributes:
        rank: Its number: the chief is 0, the workers follow.
        addresses: `host:port` of all, in the order of their ranks.
        peers: TensorFlow's names for the others.
    """

    rank: int
    addresses: Sequence[str]
    peers: Sequence[str]

    @property
    def local_rank(self) -> int:
        """Number among the processes of the host."""
        hosts = [address.rpartition(":")[0] for address in self.addresses]
        return hosts[: self.rank].count(hosts[self.rank])


class MultiWorkerBackend:
    """Train as one of the workers that TF_CONFIG names; waits until all are there.

    Raises:
        ConfigurationError: If TF_CONFIG does not describe a worker with one device, or TensorFlow
            has started already.
        LostPeerError: If not all workers come in time.
    """

    kind = "multiworker"

    def __init__(self) -> None:
        place = place_of_this_process()
        start_seconds = _seconds(START_VARIABLE, START_SECONDS)
        peer_seconds = _seconds(PEER_VARIABLE, PEER_SECONDS)
        self.rank = place.rank
        self.size = self.num_replicas = len(place.addresses)
        self.local_rank = place.local_rank
        self._strategy = _make_strategy(place.local_rank)
        self.collectives = WorkerCollectives(self.rank, self.size)
        self._wait_for_all(start_seconds, place.addresses)
        PeerMonitor(place.peers, peer_seconds).start()
        atexit.register(self._part)
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
        """Make `optimizer` reduce gradients with one batched all-reduce, instead of Keras's own."""
        if op == "adasum":
            raise ConfigurationError(
                "`op='adasum'` needs Horovod on MPI or NCCL, and TF_CONFIG starts no Horovod; "
                "choose 'average' or 'sum'."
            )
        distribute(
            accumulate(optimizer, backward_passes_per_step),
            Reduction(
                self._reduce, self.collectives, self.step_payload, compression, op, self._gather
            ),
        )
        # Where it is wrapped its model is made, which need not be where it was made itself.
        leave_sum_over_replicas_out(optimizer, tf.distribute.get_strategy())
        return optimizer

    def translate(self, error: BaseException) -> BaseException:
        """Return `LostPeerError` for what TensorFlow raises when a peer is gone."""
        return translate(error, self.rank, self.size)

    def _wait_for_all(self, seconds: float, addresses: Sequence[str]) -> None:
        try:
            self.collectives.meet(seconds)
        except LostPeerError as error:
            raise LostPeerError(
                f"rank {self.rank} of {self.size} has waited {seconds:g} s for all of "
                f"{', '.join(addresses)}. Start the job again; {START_VARIABLE} gives it more time "
                f"(exit code {LostPeerError.exit_code})."
            ) from error

    def _part(self) -> None:
        # After an exception the others are not at their ends, and must learn of it at once.
        if not hasattr(sys, "last_type"):
            self.collectives.part(PART_SECONDS)

    def _reduce(self, tensors: Sequence[Any], op: Op, name: str) -> Sequence[Any]:
        return self._strategy.all_reduce([self._weighted(tensor, op) for tensor in tensors])

    def _gather(
        self, values: Sequence[Any], indices: Sequence[Any], op: Op, name: str
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        dtype = values[0].dtype
        rows = [self._weighted(some, op) for some in values]
        if dtype == tf.bfloat16:  # Which this collective does not know; it does not compute.
            rows = [tf.bitcast(some, tf.float16) for some in rows]
        gathered = self._strategy.all_reduce(
            [tf.IndexedSlices(*some) for some in zip(rows, indices, strict=True)]
        )
        return [tf.bitcast(s.values, dtype) for s in gathered], [s.indices for s in gathered]

    def _weighted(self, tensor: Any, op: Op) -> Any:
        """Return what has to be added up over all workers."""
        # Keras has divided the loss by this: by the size in the strategy's scope, by 1 outside.
        divided = tf.distribute.get_strategy().num_replicas_in_sync
        factor = divided if op == "sum" else divided / self.size
        return tensor if factor == 1 else tensor * tf.cast(factor, tensor.dtype)


def place_of_this_process(variables: Mapping[str, str] = os.environ) -> WorkerAddresses:
    """Return what TF_CONFIG says of this process.

    Args:
        variables: Environment of the process.

    Raises:
        ConfigurationError: If that is not a worker, or there is no TF_CONFIG.
    """
    config = tf_config(variables)
    if not config.workers:
        raise ConfigurationError(
            "Backend 'multiworker' needs TF_CONFIG in the environment, which names the workers; "
            "start the script with `distrib run --backend multiworker`, or see docs/multiworker.md."
        )
    counts = {job: len(config.cluster.get(job, ())) for job in ("chief", "worker")}
    others = [job for job in (*config.cluster, config.task_type) if job not in counts]
    if others:
        raise ConfigurationError(
            f"TF_CONFIG has a task of type {others[0]!r}; here all tasks train alike, and are of "
            "type 'chief' or 'worker'."
        )
    if not 0 <= config.task_index < counts[config.task_type]:
        raise ConfigurationError(
            f"TF_CONFIG has the task {config.task_type} {config.task_index}, but its cluster has "
            f"{counts[config.task_type]} of that type."
        )
    names = [_name(job, index) for job, count in counts.items() for index in range(count)]
    rank = names.index(_name(config.task_type, config.task_index))
    return WorkerAddresses(rank, config.workers, names[:rank] + names[rank + 1 :])


def _name(job: str, index: int) -> str:
    return f"/job:{job}/replica:0/task:{index}"


def _make_strategy(local_rank: int) -> WorkerStrategy:
    try:
        take_gpu(local_rank)
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
