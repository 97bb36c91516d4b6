"""`init()`: starts the runtime of a job in this process.

It picks a backend, registers the cluster, and puts in place what the rest of the process relies on:
exit codes, messages from the chief only, and a `fit` that ranks share (`training/`).
"""

from __future__ import annotations

from typing import Literal

from distrib.backends.base import Backend
from distrib.backends.local import LocalBackend
from distrib.cluster import Cluster, set_current
from distrib.environment import launched_as
from distrib.errors import ConfigurationError, install_exit_codes
from distrib.log import show_chief_only

Kind = Literal["auto", "local", "mirrored", "horovod", "multiworker"]
_KINDS = ("local", "mirrored", "horovod", "multiworker")


def init(backend: Kind = "auto", *, devices: int | None = None) -> Cluster:
    """Start the job's runtime in this process; call it before anything else uses TensorFlow.

    Args:
        backend: `"local"` is one replica; `"mirrored"` is one replica on each of several devices of
            this machine; `"horovod"` is one of the processes that `horovodrun`, `mpirun` or
            `distrib run` started; `"multiworker"` is one of those that TF_CONFIG names. `"auto"`
            goes by the environment, and where that names no other process, picks `"mirrored"` if
            TensorFlow sees more than one GPU, else `"local"`.
        devices: For `"mirrored"`: how many devices. `None` takes all GPUs. Without a GPU, that many
            logical CPU devices are made.

    Returns:
        The cluster, also had from `distrib.current()` afterwards.

    Raises:
        ConfigurationError: If an argument does not fit.

    Example:
    >>> cluster = distrib.init()
    >>> cluster.is_chief
    True
    """
    install_exit_codes()
    if backend not in ("auto", *_KINDS):
        raise ConfigurationError(
            f"`backend={backend!r}` is unknown; choose 'auto' or one of {', '.join(_KINDS)}."
        )
    launched = launched_as()
    if backend == "auto":
        backend = launched or _detect(devices)
    elif launched is not None and backend in ("local", "mirrored"):
        raise ConfigurationError(
            f"`backend={backend!r}` is for one process, but this one was started as one of several "
            f"({launched}): each would train alone and overwrite the others' files. Leave "
            "`backend` out, or start the script without the launcher."
        )
    if backend != "mirrored" and devices not in (None, 1):
        raise ConfigurationError(
            f"`devices={devices}` does not fit backend {backend!r}, where a process has one; "
            "choose 'mirrored'."
        )
    cluster = Cluster(_make_backend(backend, devices))
    set_current(cluster)
    show_chief_only(cluster.is_chief)
    _prepare_keras(cluster)
    return cluster


def _make_backend(kind: str, devices: int | None) -> Backend:
    backend: Backend
    if kind == "local":
        return LocalBackend()
    if kind == "mirrored":
        from distrib.backends.mirrored import MirroredBackend

        return MirroredBackend(devices)
    if kind == "horovod":
        from distrib.backends.horovod import HorovodBackend

        backend = HorovodBackend()
    else:
        from distrib.backends.multiworker import MultiWorkerBackend

        backend = MultiWorkerBackend()
    install_exit_codes(backend.translate)
    return backend


def _prepare_keras(cluster: Cluster) -> None:
    """Wrap Keras's trainer. Not before the backend has started: Keras imports TensorFlow."""
    from distrib.keras_compat.trainer import keep_auto_jit_off
    from distrib.training import trainer_wrapper

    trainer_wrapper.install()
    if cluster.size > 1:
        keep_auto_jit_off()  # XLA cannot compile what the ranks exchange in a train step.


def _detect(devices: int | None) -> Literal["local", "mirrored"]:
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    return "mirrored" if (devices or gpus) > 1 else "local"
