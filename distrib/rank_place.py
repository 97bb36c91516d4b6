"""Tells a rank from the processes that it starts.

Environment variables give a rank its place in the job, and all its descendants inherit them: a
worker process that imports the script again, or another script that uses distrib. None of them must
join the job as the same rank. So `init()` writes into the environment which process has taken the
place, by its pid and start time, and a process that finds another one there is a descendant.

Whatever stands between a launcher and the rank (a shell, `env`, `numactl`) has not taken the place,
and `os.exec` keeps pid and start time. A launcher that a rank starts gives its own ranks places of
their own; these variables differ from those that the record names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from multiprocessing import parent_process
from pathlib import Path
from zlib import crc32

VARIABLE = "DISTRIB_RANK_PROCESS"
# By at least one of these a launcher's processes differ from each other and from other jobs'.
_PLACE = (
    *("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_GLOO_RENDEZVOUS_ADDR"),
    *("HOROVOD_GLOO_RENDEZVOUS_PORT", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    *("PMIX_NAMESPACE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "SLURM_STEP_ID", "SLURM_PROCID"),
    *("TF_CONFIG", "DISTRIB_HEARTBEAT"),
)

# Prefixes of variables by which MPI libraries, Horovod and distrib find their job.
_OF_THE_JOB = ("HOROVOD_", "OMPI_", "PMIX_", "PMI_", "PRTE_", "DISTRIB_")


def take() -> None:
    """Record this process as the one that has its place, unless another one has."""
    if taken_by() is None:
        os.environ[VARIABLE] = "/".join([_identity(), *sorted(_place(os.environ))])


def taken_by(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the process id of the ancestor that has this place; `None` if there is none.

    Args:
        environment: Variables of the process. Defaults to `os.environ`.
    """
    identity, *place = environment.get(VARIABLE, "").split("/")
    # Variables that are missing now were removed for this process, and give it no other place.
    if not identity or identity == _identity() or not _place(environment) <= {*place}:
        return None
    return int(identity.partition(":")[0])


def without_place(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process that no library in it may take for a rank.

    Args:
        environment: Variables of this process.
    """
    return {
        name: value
        for name, value in environment.items()
        if name not in _PLACE and not name.startswith(_OF_THE_JOB)
    }


def is_reimport() -> bool:
    """Tell whether a worker process of `multiprocessing` is importing the script at its start."""
    return "__mp_main__" in sys.modules and parent_process() is None


def _identity() -> str:
    try:
        start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:  # Not Linux.
        start = ""
    return f"{os.getpid()}:{start}"


def _place(environment: Mapping[str, str]) -> set[str]:
    return {
        f"{name}={crc32(value.encode()):x}" for name in _PLACE if (value := environment.get(name))
    }
