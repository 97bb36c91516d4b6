"""The pip of this Python."""

from __future__ import annotations

import sys


def pip(*arguments: str) -> list[str]:
    """Return the command that runs it."""
    return [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", *arguments]
