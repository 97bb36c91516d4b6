"""This machine: cores, memory, shared memory, open files, and the disk for temporary files."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from distrib.units import format_size

from ..spare.memory import SHARE_TO_STAY, free_share
from .finding import OK, PROBLEM, WARNING, Finding

SHARED_MEMORY = Path("/dev/shm")
# Containers have 64 MB unless they are given more; NCCL alone takes some MB a GPU.
LEAST_SHARED_MEMORY = 128e6
LEAST_FILES = 4096
LEAST_DISK = 1e9
_ROOT = Path("/")


def check_machine(root: Path = _ROOT) -> Iterator[Finding]:
    """Check what ranks take from a machine.

    Args:
        root: Where `proc` and `sys` are mounted. Defaults to `/`.
    """
    yield _check_cores(root)
    yield _check_memory(root)
    yield check_shared_memory(SHARED_MEMORY)
    yield check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield check_disk(Path(tempfile.gettempdir()))


def check_shared_memory(folder: Path) -> Finding:
    """Check the size of the shared memory, which NCCL, Open MPI and PyTorch-like loaders use."""
    remedy = "--shm-size=1g for Docker; in Kubernetes an emptyDir of medium Memory on /dev/shm"
    try:
        total, _, free = shutil.disk_usage(folder)
    except OSError as error:
        return Finding(WARNING, "shared memory", f"{folder}: {error.strerror}", remedy)
    text = f"{format_size(free)} free of {format_size(total)}"
    if free < LEAST_SHARED_MEMORY:
        return Finding(WARNING, "shared memory", text, remedy)
    return Finding(OK, "shared memory", text)


def check_open_files(limit: int) -> Finding:
    """Check the hard limit of open files; a job raises the soft limit itself."""
    if limit == resource.RLIM_INFINITY or limit >= LEAST_FILES:
        return Finding(OK, "open files", "no limit" if limit < 0 else f"up to {limit}")
    text = f"at most {limit}; the launcher takes three for each rank on another host"
    return Finding(
        WARNING,
        "open files",
        text,
        "raise the hard limit: LimitNOFILE= of systemd, --ulimit nofile= of a container",
    )


def check_disk(folder: Path) -> Finding:
    """Check the disk of temporary files, where remote checkpoints are put together."""
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"distrib")
    except OSError as error:
        text = f"{folder} cannot be written: {error.strerror}"
        return Finding(PROBLEM, "temporary files", text, "set TMPDIR to a folder that can")
    text = f"{folder}, {format_size(free)} free"
    if free < LEAST_DISK:
        return Finding(WARNING, "temporary files", text, "free some, or set TMPDIR")
    return Finding(OK, "temporary files", text)


def _check_memory(root: Path) -> Finding:
    share = free_share(root)
    text = f"{share:.0%} free, by this machine and its control groups"
    if share < SHARE_TO_STAY:
        return Finding(WARNING, "memory", text, "end other processes, or raise the limit")
    return Finding(OK, "memory", text)


def _check_cores(root: Path) -> Finding:
    cores, quota = len(os.sched_getaffinity(0)), _cpu_quota(root)
    text = f"{cores} for this process"
    if quota is None or quota >= cores:
        return Finding(OK, "CPU cores", text)
    text += f", limited to the time of {quota:g} by a control group"
    if quota < 1:
        return Finding(WARNING, "CPU cores", text, "raise the CPU limit of the container")
    return Finding(OK, "CPU cores", text)


def _cpu_quota(root: Path) -> float | None:
    """Return how many cores' time the control group of a container allows, by its root."""
    folder = root / "sys/fs/cgroup"
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except FileNotFoundError:
        try:
            quota = (folder / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu/cpu.cfs_period_us").read_text()
        except FileNotFoundError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
