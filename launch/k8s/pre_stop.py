"""`distrib k8s leave`: preStop hook of a pod whose first process is not `distrib run`.

Kubernetes sends SIGTERM to the first process only. In an MPIJob's worker that is sshd, which kills
its sessions, ranks included, before they have saved. The hook runs first: it sends SIGTERM to the
ranks of the pod, which makes all ranks of the job save, and returns when those of the pod have
ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from distrib.errors import EXIT_FINISHED, EXIT_LOST_PEER
from distrib.heartbeat import VARIABLE

from ..process.terminal import print_message

POLL_SECONDS = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib k8s leave`."""
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="wait S for the ranks (%(default)g)",
        metavar="S",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.seconds
    signaled = find_ranks()
    for pid in signaled:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while left := signaled & find_ranks():
        if time.monotonic() > deadline:
            pids = ", ".join(map(str, sorted(left)))
            print_message(f"these ranks have not ended within {options.seconds:g} s: {pids}.")
            return EXIT_LOST_PEER
        time.sleep(POLL_SECONDS)
    return EXIT_FINISHED


def find_ranks(proc: Path = Path("/proc")) -> set[int]:
    """Return the process ids of the ranks on this host.

    A rank and its child processes have a supervisor's heartbeat in their environment. The rank is
    the one whose parent has none.

    Args:
        proc: The proc file system. Defaults to `Path("/proc")`.
    """
    parents = {
        int(folder.name): _parent(folder)
        for folder in proc.iterdir()
        if folder.name.isdecimal() and _has_heartbeat(folder)
    }
    return {pid for pid, parent in parents.items() if parent not in parents}


def _has_heartbeat(folder: Path) -> bool:
    try:
        variables = (folder / "environ").read_bytes().split(b"\0")
    except OSError:  # The process has ended, or belongs to another user.
        return False
    return any(variable.startswith(f"{VARIABLE}=".encode()) for variable in variables)


def _parent(folder: Path) -> int:
    try:
        status = (folder / "stat").read_text()
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])
