"""`Cluster`: this process's view of the job, and the methods that a script needs of it.

`distrib.init()` (in `runtime.py`) creates the cluster and registers it for the process, so that
callbacks learn from `current()` whether they run on the chief. Without `init()` a process is a job
by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from distrib.backends.base import Backend
from distrib.backends.local import LocalBackend
from distrib.collectives import Collectives
from distrib.environment import launched_as
from distrib.errors import ConfigurationError

if TYPE_CHECKING:
    from distrib.data.dataset import Dataset

_current: Cluster | None = None


class Cluster:
    """The processes and devices of a job, seen from one process; created by `distrib.init()`.

    Example:

    ```python
    cluster = distrib.init()
    with cluster.scope():
        model = build_model()
        model.compile(optimizer=cluster.optimizer(keras.optimizers.Adam(1e-3)), loss="mse")
    model.fit(cluster.dataset((x, y), batch_size=128, shuffle=True, seed=7), epochs=3)
    ```
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def kind(self) -> str:
        """Name of the backend: `"local"`, `"mirrored"`, `"horovod"` or `"multiworker"`."""
        return self._backend.kind

    @property
    def rank(self) -> int:
        """This process's number, 0 to `size - 1`."""
        return self._backend.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self._backend.size

    @property
    def local_rank(self) -> int:
        """This process's number among those on its host."""
        return self._backend.local_rank

    @property
    def is_chief(self) -> bool:
        """Whether this process is rank 0, the only one that writes files."""
        return self.rank == 0

    @property
    def num_replicas(self) -> int:
        """Copies of the model that share each global batch, over all processes."""
        return self._backend.num_replicas

    @property
    def collectives(self) -> Collectives:
        """Collectives between the processes of the job."""
        return self._backend.collectives

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which to create the model and call `compile`."""
        return self._backend.scope()

    @property
    def step_payload(self) -> Any:
        """Flags and loss that travel with the gradients; `None` in a single process."""
        return self._backend.step_payload

    def optimizer(
        self,
        optimizer: Any,
        compression: Literal["fp16", "bf16"] | None = None,
        backward_passes_per_step: int = 1,
        op: Literal["average", "sum", "adasum"] = "average",
    ) -> Any:
        """Make an optimizer apply the gradients of the global batch.

        In a job of several processes one grouped allreduce a step reduces the gradients over all
        processes, before the optimizer clips, scales or applies them. The optimizer object keeps
        its class and configuration, so a saved model loads without distrib.

        Args:
            optimizer: A `keras.optimizers.Optimizer`, or the name of one. Pass a
                `LossScaleOptimizer` as a whole, not its inner optimizer; the one that `compile`
                creates for mixed_float16 needs no care.
            compression: Dtype in which to send float32 and float64 gradients, `"fp16"` or `"bf16"`.
                They are summed in float16, which overflows at 65,504, or for `"bf16"` in float32.
                Defaults to `None`: gradients are sent in their own dtype.
            backward_passes_per_step: Number of batches whose gradients each rank averages before
                they are reduced and applied, like Keras's `gradient_accumulation_steps`. Defaults
                to `1`.
            op: `"average"` over all examples of the global batch, `"sum"` over the ranks, or
                `"adasum"` (Maleki et al. 2021), which needs Horovod with MPI or NCCL and a number
                of ranks that is a power of two. Defaults to `"average"`.

        Returns:
            The same optimizer.

        Raises:
            ConfigurationError: If an argument is invalid, or this backend does not support it.

        Notes:
            For embeddings only the rows of the batch are sent (`tf.IndexedSlices`), unless
            gradients are accumulated.

        Example:
        >>> optimizer = cluster.optimizer(keras.optimizers.Adam(1e-3), compression="fp16")
        """
        from distrib.backends.horovod_keras import refuse_horovods
        from distrib.gradients.optimizer import as_optimizer, check_arguments
        from distrib.keras_compat.optimizers import chain_of

        refuse_horovods(chain_of(optimizer))
        check_arguments(compression, backward_passes_per_step, op)
        return self._backend.optimizer(
            as_optimizer(optimizer), compression, backward_passes_per_step, op
        )

    def dataset(
        self,
        source: Any,
        batch_size: int,
        shuffle: bool | Literal["blocks"] = False,
        seed: int = 0,
        *,
        map: Callable[..., Any] | None = None,
        drop_remainder: bool = False,
        num_parallel_reads: int | None = None,
        shuffle_buffer: int | None = None,
        num_workers: int = 0,
    ) -> Dataset:
        """Return a dataset of global batches that can be resumed at any step.

        See `distrib.data.make_dataset.make_dataset` for the arguments, errors and an example.
        """
        from distrib.data.make_dataset import make_dataset

        return make_dataset(
            source,
            batch_size,
            shuffle,
            seed,
            map=map,
            drop_remainder=drop_remainder,
            num_parallel_reads=num_parallel_reads,
            shuffle_buffer=shuffle_buffer,
            num_workers=num_workers,
            num_replicas=self.num_replicas,
            rank=self.rank,
            size=self.size,
        )

    def __repr__(self) -> str:
        return (
            f"Cluster(kind={self.kind!r}, rank={self.rank}, size={self.size}, "
            f"num_replicas={self.num_replicas})"
        )


def current() -> Cluster:
    """Return the cluster that `init()` created, or a local one of this process alone.

    Raises:
        ConfigurationError: If this process is one of several and has not called `init()`.
    """
    global _current
    if _current is None:
        launched = launched_as()
        if launched is not None:
            raise ConfigurationError(
                f"This process was started as one of several ({launched}) and has not joined "
                "them; call `distrib.init()` at the beginning of the script."
            )
        _current = Cluster(LocalBackend())
    return _current


def has_current() -> bool:
    """Tell whether `init()` or `current()` has made this process's cluster."""
    return _current is not None


def set_current(cluster: Cluster) -> None:
    """Make `current()` return this cluster from now on."""
    global _current
    _current = cluster


def _forget_in_child() -> None:
    """Make a forked process a job by itself: it must not take part in its parent's collectives."""
    global _current
    _current = None


os.register_at_fork(after_in_child=_forget_in_child)
