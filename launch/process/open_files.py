"""How many files a process may have open: sockets and pipes, of which a launcher has some a rank.

The soft limit of many systems is 1024, for programs that use `select`; the hard limit is far
higher. The launcher raises the former as far as its job needs. Its children inherit it.
"""

from __future__ import annotations

import os
import resource

from distrib.errors import ConfigurationError

OTHER_FILES = 128  # For anything else.


def allow_files(count: int) -> None:
    """Let this process open so many more files, as far as its hard limit allows."""
    _raise_soft_limit(count)


def reserve_files(count: int) -> None:
    """Let this process open so many more files.

    Raises:
        ConfigurationError: If its hard limit does not allow it.
    """
    needed, hard = _raise_soft_limit(count)
    if needed > hard:
        raise ConfigurationError(
            f"the launcher of this job needs up to {needed} open files, and its hard limit is "
            f"{hard} (`ulimit -Hn`). Raise it, for example by LimitNOFILE= of a systemd service, "
            "--ulimit nofile= of a container, or /etc/security/limits.conf; or use fewer ranks."
        )


def _raise_soft_limit(count: int) -> tuple[int, int]:
    """Return how many files there will be, and the hard limit."""
    needed = len(os.listdir("/proc/self/fd")) + count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
    return needed, hard
