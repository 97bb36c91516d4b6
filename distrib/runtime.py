"""`init()`: starts the job's runtime in this process.

It creates the backend, registers the cluster, and installs process-wide hooks: exit codes, messages
from the chief only, and a wrapper around Keras's `fit` that ranks share (`training/`).
"""

from __future__ import annotations

import os
from typing import Literal

from distrib import rank_place
from distrib.backends.base import Backend
from distrib.backends.horovod_keras import explain
from distrib.backends.local import LocalBackend
from distrib.cluster import Cluster, set_current
from distrib.environment import launched_as, started_by_rank
from distrib.errors import ConfigurationError, install_exit_codes
from distrib.log import log, show_chief_only

Kind = Literal["auto", "local", "mirrored", "horovod", "multiworker"]
_KINDS = ("local", "mirrored", "horovod", "multiworker")


def init(backend: Kind = "auto", *, devices: int | None = None) -> Cluster:
    """Start the job's runtime in this process; call it before anything else uses TensorFlow.

    Args:
        backend: `"local"` is one replica; `"mirrored"` is one replica on each of several devices of
            this machine; `"horovod"` is one of the processes that `horovodrun`, `mpirun` or
            `distrib run` started; `"multiworker"` is one of those that TF_CONFIG names. `"auto"`
            chooses by the environment; if that names no other process, it chooses `"mirrored"` if
            TensorFlow sees several GPUs, else `"local"`. A process that a rank has started is no
            part of the job, and `"auto"` is `"local"` there; so is any backend while a worker
            process of `multiprocessing` imports the script. Defaults to `"auto"`.
        devices: Number of devices, for `"mirrored"`. On a host without GPUs the CPU is divided into
            this many logical devices. Defaults to `None`: all GPUs.

    Returns:
        The cluster, which `distrib.current()` returns from now on.

    Raises:
        ConfigurationError: If an argument is invalid, or does not fit the way in which this process
            was started.
        LostPeerError: If other workers do not connect in time (`"multiworker"`).

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
    launched, rank = launched_as(), started_by_rank()
    if rank is not None:
        backend, devices = _beside_rank(backend, devices, rank)
    else:
        rank_place.take()
    if backend == "auto":
        backend = launched or _single_process_backend(devices)
    elif launched is not None and backend in ("local", "mirrored"):
        raise ConfigurationError(
            f"`backend={backend!r}` is for one process, but this one was started as one of several "
            f"({launched}): each would train alone and overwrite the others' files. Leave "
            "`backend` out, or start the script without the launcher."
        )
    if backend != "mirrored" and devices not in (None, 1):
        raise ConfigurationError(
            f"`devices={devices}` does not fit backend {backend!r}, with one device a process; "
            "choose 'mirrored'."
        )
    made = _make_backend(backend, devices)
    install_exit_codes(lambda error: explain(made.translate_error(error)))
    cluster = Cluster(made)
    set_current(cluster)
    show_chief_only(cluster.is_chief)
    _prepare_keras(cluster)
    return cluster


def _beside_rank(backend: Kind, devices: int | None, rank: int) -> tuple[Kind, int | None]:
    """Return the arguments of `init` that apply in a process that a rank has started."""
    if rank_place.is_reimport():
        return "local", None
    if backend in ("horovod", "multiworker"):
        raise ConfigurationError(
            f"`backend={backend!r}`: process {rank}, a rank of the job, has started this one, "
            "which cannot join the job as the same rank. Leave `backend` out, or choose 'local'."
        )
    if backend != "auto":
        return backend, devices
    log.info(
        f"process {rank}, a rank of the job, has started process {os.getpid()}, which is no part "
        "of the job and gets a cluster of its own (backend 'local')."
    )
    return "mirrored" if (devices or 1) > 1 else "local", devices


def _make_backend(kind: str, devices: int | None) -> Backend:
    if kind == "local":
        return LocalBackend()
    if kind == "mirrored":
        from distrib.backends.mirrored import MirroredBackend

        return MirroredBackend(devices)
    if kind == "horovod":
        from distrib.backends.horovod import HorovodBackend

        return HorovodBackend()
    from distrib.backends.multiworker import MultiWorkerBackend

    return MultiWorkerBackend()


def _prepare_keras(cluster: Cluster) -> None:
    """Wrap Keras's trainer. The backend must have started, because Keras imports TensorFlow."""
    from distrib.keras_compat.train_step import replace_train_step
    from distrib.training import trainer_wrapper
    from distrib.training.compiled_step import step_on_ranks

    trainer_wrapper.install()
    if cluster.size > 1:
        replace_train_step(step_on_ranks)


def _single_process_backend(devices: int | None) -> Literal["local", "mirrored"]:
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    return "mirrored" if (devices or gpus) > 1 else "local"
