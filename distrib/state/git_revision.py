"""The git revision of the script that runs, if it is in a repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_TIMEOUT_SECONDS = 2.0
_COMMAND = ("status", "--porcelain=v2", "--branch", "--untracked-files=no")
_REVISION = "# branch.oid "


def git_revision() -> dict[str, Any] | None:
    """Return `revision` and `modified` of the script's repository.

    Returns:
        `None` without a repository or git, or if git takes longer than two seconds.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    folder = Path(script).absolute().parent if script else Path.cwd()
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *_COMMAND],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # It would write the index.
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    lines = answer.stdout.splitlines()
    revisions = [line.removeprefix(_REVISION) for line in lines if line.startswith(_REVISION)]
    if not revisions or revisions[0] == "(initial)":
        return None
    return {"revision": revisions[0], "modified": any(line[:1] != "#" for line in lines)}
