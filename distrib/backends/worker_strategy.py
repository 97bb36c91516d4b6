"""`MultiWorkerMirroredStrategy` that does nothing across workers unless it is asked to.

TensorFlow's own talks to the other workers in many places: it sends initial values at the creation
of every variable, adds up metrics and averages statistics whenever such a variable is read, and
asks all workers at every step who still has data. Each of these waits for ever when not all workers
do the same: when the chief alone saves or evaluates a model, say. Here variables are read and made
where they are, data stays with the worker that was given it, and what has to cross is sent by
`distrib`, where all ranks take part: gradients in the optimizer, the rest in its collectives.

TensorFlow's coordination service, which would watch the workers, is left out: it takes ten seconds
to miss one, and all depend on the one that hosts it. `peers.py` watches instead.

With one replica in each process there is nobody to merge with in the process either, so updates are
made in the replica itself, which lets them stand inside of a conditional, as they do where
gradients are accumulated.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import (
    CollectiveAllReduceExtended,
)
from tensorflow.python.distribute.distribute_lib import Strategy
from tensorflow.python.distribute.values import SyncOnReadVariable
from tensorflow.python.eager import context


class WorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """The strategy of a worker with one device, as TF_CONFIG describes it.

    Raises:
        RuntimeError: If TensorFlow has started already.
    """

    def __init__(self) -> None:
        # Not empty, so that TensorFlow does not choose one.
        context.context().configure_coordination_service(service_type="")
        Strategy.__init__(
            self,
            _Extended(
                self,
                cluster_resolver=tf.distribute.cluster_resolver.TFConfigClusterResolver(),
                communication_options=tf.distribute.experimental.CommunicationOptions(),
            ),
        )

    def all_reduce(self, tensors: list[Any]) -> list[Any]:
        """Add up tensors, or gather `tf.IndexedSlices`, of all workers; in a train step.

        Dense tensors of one dtype are one collective. Works in any scope or in none.
        """
        extended = self.extended
        summed: list[Any] = extended._cross_device_ops._all_reduce(
            tf.distribute.ReduceOp.SUM, tensors, 0, extended._communication_options
        )
        return summed

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Return `dataset`: each worker has its own."""
        return dataset

    def reduce(self, reduce_op: Any, value: Any, axis: Any) -> Any:
        """Reduce over the workers, or return what this worker has of a variable that is read."""
        if isinstance(value, SyncOnReadVariable):
            return value.values[0].read_value()
        return super().reduce(reduce_op, value, axis)


class _Extended(CollectiveAllReduceExtended):
    _enable_check_health = False

    def _use_merge_call(self) -> bool:
        return False

    def _create_variable(self, next_creator: Any, **kwargs: Any) -> Any:
        # A variable that is assigned in a step would otherwise be averaged over the workers, or
        # sent by the first one, which must not stand inside of a conditional either.
        if kwargs.get("synchronization") != tf.VariableSynchronization.ON_READ:
            kwargs["aggregation"] = tf.VariableAggregation.NONE
        return super()._create_variable(next_creator, **kwargs)

    def _call_for_each_replica(self, fn: Any, args: Any, kwargs: Any) -> Any:
        if not tf.executing_eagerly():
            return super()._call_for_each_replica(fn, args, kwargs)
        # The one replica is this thread; TensorFlow would start another, and warn of the cost.
        with tf.distribute.ReplicaContext(self._container_strategy(), self._id_in_cluster):
            return fn(*args, **kwargs)

    def _get_variable_creator_initial_value(
        self, replica_id: int, device: Any, primary_var: Any, **kwargs: Any
    ) -> Any:
        return kwargs["initial_value"]
