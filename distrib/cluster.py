"""`Cluster`: who this process is in the job, and the few things a script asks of it.

`init()` picks a backend and keeps the cluster for the rest of the process, because callbacks find
out by `current()` whether they are the chief. Without `init()` a process is a job of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from distrib.backends.base import Backend
from distrib.collectives import Collectives
from distrib.errors import ConfigurationError, install_exit_codes

if TYPE_CHECKING:
    from distrib.data import Dataset

Kind = Literal["auto", "local", "mirrored"]

_current: Cluster | None = None


class Cluster:
    """The processes and devices of one job, seen from one process; made by `distrib.init()`.

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
        """`"local"` or `"mirrored"`."""
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
        """Whether this process is the one that writes: rank 0."""
        return self.rank == 0

    @property
    def num_replicas(self) -> int:
        """Copies of the model that share each global batch, over all processes."""
        return self._backend.num_replicas

    @property
    def collectives(self) -> Collectives:
        """How the processes of the job agree."""
        return self._backend.collectives

    def scope(self) -> AbstractContextManager[Any]:
        """Context in which to create the model and call `compile`."""
        return self._backend.scope()

    def optimizer(self, optimizer: Any) -> Any:
        """Return an optimizer whose gradients are reduced over all replicas.

        Args:
            optimizer: A `keras.optimizers.Optimizer`.
        """
        return self._backend.optimizer(optimizer)

    def dataset(
        self,
        source: Any,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        *,
        map: Callable[..., Any] | None = None,
        drop_remainder: bool = False,
        num_parallel_reads: int | None = None,
        shuffle_buffer: int | None = None,
    ) -> Dataset:
        """Return a dataset of global batches that can be resumed at any step.

        The arguments are those of `distrib.data.make_dataset`, which describes them.
        """
        from distrib.data import make_dataset

        return make_dataset(
            source,
            batch_size,
            shuffle,
            seed,
            map=map,
            drop_remainder=drop_remainder,
            num_parallel_reads=num_parallel_reads,
            shuffle_buffer=shuffle_buffer,
            num_replicas=self.num_replicas,
        )

    def __repr__(self) -> str:
        return (
            f"Cluster(kind={self.kind!r}, rank={self.rank}, size={self.size}, "
            f"num_replicas={self.num_replicas})"
        )


def init(backend: Kind = "auto", *, devices: int | None = None) -> Cluster:
    """Start the job's runtime in this process; call it before anything else uses TensorFlow.

    Args:
        backend: `"local"` is one replica; `"mirrored"` is one replica on each of several devices of
            this machine. `"auto"` picks `"mirrored"` where TensorFlow sees more than one GPU, else
            `"local"`.
        devices: For `"mirrored"`: how many devices. `None` takes all GPUs. Without a GPU, that many
            logical CPU devices are made.

    Returns:
        The cluster, also had from `distrib.current()` afterwards.

    Raises:
        ConfigurationError: If an argument does not fit, or the process was started as one of
            several, which this version cannot join.

    Example:
    >>> cluster = distrib.init()
    >>> cluster.is_chief
    True
    """
    global _current
    install_exit_codes()
    if backend not in ("auto", "local", "mirrored"):
        raise ConfigurationError(
            f"`backend={backend!r}` is unknown; choose 'auto', 'local' or 'mirrored'."
        )
    _refuse_launchers()
    if backend == "auto":
        backend = _detect(devices)
    if backend == "local" and devices not in (None, 1):
        raise ConfigurationError(
            f"`devices={devices}` does not fit backend 'local', which uses one; choose 'mirrored'."
        )
    _current = Cluster(_make_backend(backend, devices))
    return _current


def current() -> Cluster:
    """Return the cluster that `init()` made, or a local one of this process alone."""
    global _current
    if _current is None:
        _current = Cluster(_make_backend("local", None))
    return _current


def _make_backend(kind: str, devices: int | None) -> Backend:
    if kind == "mirrored":
        from distrib.backends.mirrored import MirroredBackend

        return MirroredBackend(devices)
    from distrib.backends.local import LocalBackend

    return LocalBackend()


def _detect(devices: int | None) -> Literal["local", "mirrored"]:
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    return "mirrored" if (devices or gpus) > 1 else "local"


def _refuse_launchers() -> None:
    """Refuse to run as one of many: each would train alone and overwrite the others' files."""
    sizes = {name: os.environ.get(name, "") for name in ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE")}
    sizes["TF_CONFIG"] = str(_workers(os.environ.get("TF_CONFIG", "")))
    for variable, size in sizes.items():
        if size.isdecimal() and int(size) > 1:
            raise ConfigurationError(
                f"{variable}={os.environ[variable]}: this process is one of {size}, but this "
                "version of distrib trains in one process; start the script without the launcher."
            )


def _workers(tf_config: str) -> int:
    """Number of training processes that TF_CONFIG names."""
    if not tf_config:
        return 0
    try:
        tasks = json.loads(tf_config).get("cluster", {})
    except ValueError as error:
        raise ConfigurationError(f"TF_CONFIG is not JSON ({error}): {tf_config!r}") from error
    return sum(len(tasks.get(role, ())) for role in ("chief", "worker"))
