"""How much memory is free for spares: they must never take what the ranks need.

A spare is started only while a quarter of the memory is free, and ends by itself when less than a
tenth is. Both the machine's memory and the limits of its control groups count. If memory runs out
all the same, the kernel kills a waiting spare before anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

SHARE_TO_START = 0.25
SHARE_TO_STAY = 0.1
_FIRST_VICTIM = "1000"
# The limit, the usage, and what of the usage can be dropped.
_FILES = ("memory.max", "memory.current", "inactive_file")
_FILES_OF_VERSION_1 = (*("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),)
_OOM_SCORE = Path("/proc/self/oom_score_adj")


def free_share(root: Path = Path("/")) -> float:
    """Return the free share of the memory of this machine or control group, the smaller one.

    Args:
        root: Where `proc` and `sys` are mounted. Defaults to `/`.
    """
    return min([_machine(root), *_control_groups(root)])


def become_first_victim() -> str:
    """Let the kernel kill this process first when memory runs out; return the value before."""
    before = _OOM_SCORE.read_text()
    _OOM_SCORE.write_text(_FIRST_VICTIM)
    return before


def restore_score(before: str) -> None:
    """Undo `become_first_victim`."""
    _OOM_SCORE.write_text(before)


def _machine(root: Path) -> float:
    lines = [line.split() for line in (root / "proc/meminfo").read_text().splitlines()]
    sizes = {line[0]: int(line[1]) for line in lines}
    return sizes["MemAvailable:"] / sizes["MemTotal:"]


def _control_groups(root: Path) -> Iterator[float]:
    """Yield the free share of this process's control group and of those around it."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounted, files = root / "sys/fs/cgroup", _FILES
        elif "memory" in controllers.split(","):
            mounted, files = root / "sys/fs/cgroup/memory", _FILES_OF_VERSION_1
        else:
            continue
        folder = mounted / path.lstrip("/")
        # A container may see its own group as the root, under the path that it has outside.
        for group in (folder, *folder.parents):
            share = _group_share(group, *files)
            if share is not None:
                yield share
            if group == mounted:
                break


def _group_share(folder: Path, limit: str, usage: str, cache: str) -> float | None:
    """Return the free share of one control group; `None` if it has no limit."""
    try:
        most = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except FileNotFoundError:
        return None
    if most == "max":
        return None
    # As Kubernetes counts: files that were not used lately are dropped before memory runs out.
    used -= sum(int(line.split()[1]) for line in lines if line.split()[0] == cache)
    return max(0.0, 1 - used / int(most))
