"""`distrib k8s leave`: for a pod whose first process is not `distrib run`, as an MPIJob's worker.

Kubernetes sends SIGTERM to the first process alone, and sshd ends its sessions, ranks included,
before they have saved. So this is the container's preStop hook: it asks the ranks to stop, which
makes all ranks of the job save, and returns when those here have ended.
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
        "--seconds", type=float, default=60.0, help="how long to wait for them (%(default)g)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.seconds
    asked = ranks()
    for pid in asked:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while left := asked & ranks():
        if time.monotonic() > deadline:
            pids = ", ".join(map(str, sorted(left)))
            print_message(f"these ranks have not ended within {options.seconds:g} s: {pids}.")
            return EXIT_LOST_PEER
        time.sleep(POLL_SECONDS)
    return EXIT_FINISHED


def ranks(proc: Path = Path("/proc")) -> set[int]:
    """Return the process numbers of the ranks on this host.

    A rank, and what it has started, has a supervisor's heartbeat in its environment. The rank is
    the one whose parent has not.

    Args:
        proc: Where processes are looked for.
    """
    children = {
        int(folder.name): _parent(folder)
        for folder in proc.iterdir()
        if folder.name.isdecimal() and _has_heartbeat(folder)
    }
    return {pid for pid, parent in children.items() if parent not in children}


def _has_heartbeat(folder: Path) -> bool:
    try:
        variables = (folder / "environ").read_bytes().split(b"\0")
    except OSError:  # It has ended, or is somebody else's.
        return False
    return any(variable.startswith(f"{VARIABLE}=".encode()) for variable in variables)


def _parent(folder: Path) -> int:
    try:
        status = (folder / "stat").read_text()
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])
