"""What the environment says of how this process was started."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from distrib.errors import ConfigurationError

# Set by Open MPI's mpirun, and by MPICH's and Intel's. Slurm sets the latter for any program.
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


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
    if len(workers(environment)) > 1:
        return "multiworker"
    return None


def workers(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the addresses of the training processes that TF_CONFIG names, the chief first.

    Raises:
        ConfigurationError: If it is not what TensorFlow documents.
    """
    cluster = _tf_config(environment).get("cluster", {})
    return [address for role in ("chief", "worker") for address in cluster.get(role, ())]


def _tf_config(environment: Mapping[str, str]) -> dict[str, Any]:
    text = environment.get("TF_CONFIG", "")
    try:
        config = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigurationError(f"TF_CONFIG is not JSON ({error}): {text!r}") from error
    if not isinstance(config, dict) or not isinstance(config.get("cluster", {}), dict):
        raise ConfigurationError(f"TF_CONFIG is not an object with a `cluster`: {text!r}")
    return config
