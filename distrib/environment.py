"""How this process was started, read from its environment variables."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distrib import rank_place
from distrib.errors import ConfigurationError
from distrib.units import parse_seconds

# Set by Open MPI's mpirun, and by MPICH's and Intel's. Slurm sets the latter for any program.
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_RANKS = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
HOROVOD_SIZE_VARIABLE = "HOROVOD_SIZE"
# Seconds that Horovod's ranks wait for each other.
GLOO_TIMEOUT_VARIABLE = "HOROVOD_GLOO_TIMEOUT_SECONDS"
# Seconds that a process has for saving after a request to stop.
GRACE_VARIABLE = "DISTRIB_GRACE_SECONDS"
# The cloud whose preemption notices are polled.
NOTICES_VARIABLE = "DISTRIB_PREEMPTION_NOTICES"
# Set by `distrib run` for its ranks; see `Supervision`.
ATTEMPTS_VARIABLE = "DISTRIB_ATTEMPTS"
STALLED_VARIABLE = "DISTRIB_STALLED_ATTEMPTS"
LAST_END_VARIABLE = "DISTRIB_LAST_END"
Launched = Literal["horovod", "multiworker"]
# Set by Slurm for a job that it has queued again.
_SLURM_RESTARTS_VARIABLE = "SLURM_RESTART_COUNT"
_FORM = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class TFConfig:
    """The content of TF_CONFIG.

    Attributes:
        cluster: Addresses of the tasks of each type.
        task_type: Of this process; empty if missing.
        task_index: This process's number among the tasks of its type; -1 if missing.
    """

    cluster: Mapping[str, Sequence[str]]
    task_type: str = ""
    task_index: int = -1

    @property
    def workers(self) -> list[str]:
        """Addresses of the processes that train, the chief first."""
        return [address for role in ("chief", "worker") for address in self.cluster.get(role, ())]


def tf_config(environment: Mapping[str, str] = os.environ) -> TFConfig:
    """Return the content of TF_CONFIG; an empty cluster if it is not set.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If it is not of the form that TensorFlow documents.
    """
    text = environment.get("TF_CONFIG", "")
    try:
        config = json.loads(text or "{}")
        cluster = {role: list(addresses) for role, addresses in config.get("cluster", {}).items()}
        task = config.get("task", {})
        return TFConfig(cluster, str(task.get("type", "")), int(task.get("index", -1)))
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"TF_CONFIG={text!r} is not of the form {_FORM}.") from error


@dataclass(frozen=True)
class Supervision:
    """What the supervisor that restarts this job has seen.

    Attributes:
        attempts: How many attempts in a row may gain no step; 0 for no limit, and if the job has no
            supervisor.
        stalled: How many attempts in a row have made no progress, as the supervisor has seen it.
        last_end: How the last attempt ended, in a line; may be empty.
    """

    attempts: int = 0
    stalled: int = 0
    last_end: str = ""


UNSUPERVISED = Supervision()


def supervision(environment: Mapping[str, str] = os.environ) -> Supervision:
    """Return what the supervisor of this job has seen; `UNSUPERVISED` if there is none.

    A process that a rank has started is not part of the job.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If a variable cannot be parsed.
    """
    if started_by_rank(environment) is not None:
        return UNSUPERVISED
    return Supervision(
        _count(environment, ATTEMPTS_VARIABLE),
        _count(environment, STALLED_VARIABLE),
        environment.get(LAST_END_VARIABLE, ""),
    )


def grace_seconds(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds for saving after a request to stop; `None` if not set.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If the variable is not a number of seconds.
    """
    text = environment.get(GRACE_VARIABLE, "")
    if not text:
        return None
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise ConfigurationError(f"{GRACE_VARIABLE}={error}.") from error


def slurm_restarts(environment: Mapping[str, str] = os.environ) -> int:
    """Return how often Slurm has queued this job again.

    Args:
        environment: Variables of the process.
    """
    text = environment.get(_SLURM_RESTARTS_VARIABLE, "")
    return int(text) if text.isdecimal() else 0


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "") or "0"
    if not text.isdecimal():
        raise ConfigurationError(f"{name}={text!r} is not a whole number from 0.")
    return int(text)


def launched_as(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """Return the backend that connects the processes of the job; `None` if this is the only one.

    Also `None` in a process that a rank has started, although it has inherited the variables.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If a variable cannot be parsed.
    """
    launched = _launched_as(environment)
    if launched is None or rank_place.taken_by(environment) is not None:
        return None
    return launched


def is_chief(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process is the one of its job that writes; before `distrib.init()`, too.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If a variable cannot be parsed.
    """
    launched = launched_as(environment)
    if launched == "multiworker":
        config = tf_config(environment)
        first = "chief" if config.cluster.get("chief") else "worker"
        return (config.task_type, config.task_index) == (first, 0)
    ranks = (environment[name] for name in _RANKS if name in environment)
    return launched is None or next(ranks, "0") == "0"


def started_by_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the process id of the rank that this process, or its parent, ... was started by.

    Args:
        environment: Variables of the process.

    Returns:
        `None` in a rank, and in a process that has nothing to do with one. Worker processes of
        `multiprocessing` that import a script count the process that runs it as a rank, even if it
        is the only one.

    Raises:
        ConfigurationError: If a variable cannot be parsed.
    """
    if rank_place.is_reimport() or _launched_as(environment) is not None:
        return rank_place.taken_by(environment)
    return None


def _launched_as(environment: Mapping[str, str]) -> Launched | None:
    sizes = [environment.get(name, "") for name in _MPI_SIZES]
    many = any(size.isdecimal() and int(size) > 1 for size in sizes)
    if many or HOROVOD_SIZE_VARIABLE in environment:  # Set by horovodrun and `distrib run`.
        return "horovod"
    if len(tf_config(environment).workers) > 1:
        return "multiworker"
    return None
