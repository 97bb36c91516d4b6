"""Removes temporary files that killed processes left on the local disk.

`distrib.storage.local_files` names them `.tmp-<pid>-<8 hex digits>-<name>`. A file is removed
only if its name is that of a callback's file and the process that wrote it has ended.
"""

from __future__ import annotations

import os
import re

from distrib.storage.location import Location


def remove_orphans(location: Location) -> None:
    """Remove the temporary files of dead processes for one target file.

    Args:
        location: The target; a remote store holds no temporary files. Its name may hold
        `str.format`
            placeholders. If its folder does, nothing is removed.
    """
    target = location.local
    if target is None or not target.parent.is_dir():
        return
    literals = re.split(r"\{[^{}]*\}", target.name)
    name = ".+".join(re.escape(literal) for literal in literals)
    pattern = re.compile(rf"\.tmp-(\d+)-[0-9a-f]{{8}}-{name}")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _in_use(int(match[1])):
            path.unlink(missing_ok=True)


def _in_use(pid: int) -> bool:
    # A file with this process's number is a dead process's: in a container every attempt has the
    # same number, and callbacks write from the training thread, which is executing this.
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
