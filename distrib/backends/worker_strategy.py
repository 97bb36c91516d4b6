"""A `MultiWorkerMirroredStrategy` without implicit communication between workers.

TensorFlow's strategy communicates in many places: it broadcasts the initial value of every
variable, sums metrics and averages statistics when their variables are read, and asks all workers
at every step whether they have data left. Each of these waits for ever unless all workers do the
same, for instance when only the chief saves or evaluates a model. With this strategy a worker
creates and reads variables locally and keeps its own data. `distrib` communicates explicitly, where
all ranks take part: gradients in the optimizer, everything else in its collectives.

TensorFlow's coordination service, which would monitor the workers, is disabled: it takes ten
seconds to detect a lost worker, and all workers depend on the one that hosts it. `peer_monitor.py`
replaces it.

Each process has one replica, so there are no replicas to merge within a process either. Variables
are updated in the replica context, which allows updates inside a conditional, as gradient
accumulation needs.
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
    """The strategy of a worker with one device that TF_CONFIG describes.

    Raises:
        RuntimeError: If TensorFlow has started already.
    """

    def __init__(self) -> None:
        # Configures no service; without this call TensorFlow would choose one.
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
        """Sum tensors, or gather `tf.IndexedSlices`, over all workers; for use in a train step.

        Takes one collective for the dense tensors of each dtype. Works inside and outside of a
        strategy's scope.
        """
        extended = self.extended
        summed: list[Any] = extended._cross_device_ops._all_reduce(
            tf.distribute.ReduceOp.SUM, tensors, 0, extended._communication_options
        )
        return summed

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Return `dataset` as it is: each worker has its own data."""
        return dataset

    def reduce(self, reduce_op: Any, value: Any, axis: Any) -> Any:
        """Reduce over the workers, but read a sync-on-read variable from this worker only."""
        if isinstance(value, SyncOnReadVariable):
            return value.values[0].read_value()
        return super().reduce(reduce_op, value, axis)


class _Extended(CollectiveAllReduceExtended):
    _enable_check_health = False

    def _use_merge_call(self) -> bool:
        return False

    def _create_variable(self, next_creator: Any, **kwargs: Any) -> Any:
        # Otherwise an assignment in a step would average the variable over the workers or broadcast
        # it from the first one, neither of which works inside a conditional.
        if kwargs.get("synchronization") != tf.VariableSynchronization.ON_READ:
            kwargs["aggregation"] = tf.VariableAggregation.NONE
        return super()._create_variable(next_creator, **kwargs)

    def _call_for_each_replica(self, fn: Any, args: Any, kwargs: Any) -> Any:
        if not tf.executing_eagerly():
            return super()._call_for_each_replica(fn, args, kwargs)
        # Runs the only replica in this thread; TensorFlow would start another and warn of the cost.
        with tf.distribute.ReplicaContext(self._container_strategy(), self._id_in_cluster):
            return fn(*args, **kwargs)

    def _get_variable_creator_initial_value(
        self, replica_id: int, device: Any, primary_var: Any, **kwargs: Any
    ) -> Any:
        return kwargs["initial_value"]
