"""What the environment says of how this process was started."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distrib.errors import ConfigurationError
from distrib.units import parse_seconds

# Set by Open MPI's mpirun, and by MPICH's and Intel's. Slurm sets the latter for any program.
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# Seconds that a process has for saving after a request to stop.
GRACE_VARIABLE = "DISTRIB_GRACE_SECONDS"
# What `distrib run` tells its ranks: how many attempts in a row may gain no step, how many have by
# now, and how the last one ended. See `Supervision`.
ATTEMPTS_VARIABLE = "DISTRIB_ATTEMPTS"
STALLED_VARIABLE = "DISTRIB_STALLED_ATTEMPTS"
LAST_END_VARIABLE = "DISTRIB_LAST_END"
_FORM = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class TFConfig:
    """What TF_CONFIG says.

    Attributes:
        cluster: Addresses of the tasks of each type.
        task_type: Of this process; empty if it does not say.
        task_index: This process's number among the tasks of its type; -1 if it does not say.
    """

    cluster: Mapping[str, Sequence[str]]
    task_type: str = ""
    task_index: int = -1

    @property
    def workers(self) -> list[str]:
        """Addresses of the processes that train, the chief first."""
        return [address for role in ("chief", "worker") for address in self.cluster.get(role, ())]


def tf_config(environment: Mapping[str, str] = os.environ) -> TFConfig:
    """Return what TF_CONFIG says; nothing if it is not there.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If it is not what TensorFlow documents.
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
    """What whoever starts this job again by itself says.

    Attributes:
        attempts: How many attempts in a row may gain no step; 0 for any number, and if nobody but a
            person starts the job again.
        stalled: How many have, as far as the supervisor in charge has seen.
        last_end: How the last one that it has seen ended, in a line; may be empty.
    """

    attempts: int = 0
    stalled: int = 0
    last_end: str = ""


NOBODY = Supervision()


def supervision(environment: Mapping[str, str] = os.environ) -> Supervision:
    """Return what the supervisor of this job says; nothing if there is none.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If a variable cannot be understood.
    """
    return Supervision(
        _count(environment, ATTEMPTS_VARIABLE),
        _count(environment, STALLED_VARIABLE),
        environment.get(LAST_END_VARIABLE, ""),
    )


def grace_seconds(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds that a request to stop leaves for saving; `None` if nobody says.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If the variable is no number of seconds.
    """
    text = environment.get(GRACE_VARIABLE, "")
    if not text:
        return None
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise ConfigurationError(f"{GRACE_VARIABLE}={error}.") from error


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "") or "0"
    if not text.isdecimal():
        raise ConfigurationError(f"{name}={text!r} is not a whole number from 0.")
    return int(text)


def launched_as(
    environment: Mapping[str, str] = os.environ,
) -> Literal["horovod", "multiworker"] | None:
    """Tell which backend joins the other processes of the job; `None` if there are none.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If a variable cannot be understood.
    """
    sizes = [environment.get(name, "") for name in _MPI_SIZES]
    many = any(size.isdecimal() and int(size) > 1 for size in sizes)
    if many or "HOROVOD_SIZE" in environment:  # That is set by horovodrun and `distrib run`.
        return "horovod"
    if len(tf_config(environment).workers) > 1:
        return "multiworker"
    return None
