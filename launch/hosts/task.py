"""The command that every rank of a job runs, as the spec that a rank agent reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..process.terminal import STDERR, STDOUT
from .placement import RankPlacement

LEASE_SECONDS = 60.0  # How long a rank on another host survives without word from the launcher.


@dataclass(frozen=True)
class Task:
    """The command that every rank runs.

    Attributes:
        command: The program and its arguments.
        exported: Environment for ranks on hosts that are reached by ssh, which passes none on.
    """

    command: Sequence[str]
    exported: Mapping[str, str]

    @property
    def is_script(self) -> bool:
        """Whether this interpreter runs a script or module, without options of its own."""
        program, *arguments = self.command
        if program != sys.executable or not arguments:
            return False
        return arguments[0] == "-m" or not arguments[0].startswith("-")

    def local_spec(self, placement: RankPlacement) -> dict[str, Any]:
        """Return the spec of a rank on this host. Rank 0 gets the launcher's terminal."""
        terminals = _terminals() if placement.rank == 0 else {}
        # When the launcher dies its pipe closes, so a local rank agent needs no lease.
        return {**self.remote_spec(), "environment": {}, "terminals": terminals, "lease": None}

    def remote_spec(self) -> dict[str, Any]:
        """Return the spec of a rank on another host."""
        return {
            "command": self.command,
            "directory": os.getcwd(),
            "environment": self.exported,
            "terminals": {},
            "lease": LEASE_SECONDS,
        }


def _terminals() -> dict[int, tuple[int, int]]:
    """Return rows and columns of those of the launcher's outputs that are a terminal."""
    sizes = {fd: os.get_terminal_size(fd) for fd in (STDOUT, STDERR) if os.isatty(fd)}
    return {fd: (size.lines, size.columns) for fd, size in sizes.items()}
