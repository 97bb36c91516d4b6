"""Removes the temporary files that killed attempts left beside a file on the local disk.

`distrib.storage.local_files` names them `.tmp-<pid>-<8 hex digits>-<name>`. One is removed only
when its name says that it was to become one of our files and the process that wrote it is gone.
"""

from __future__ import annotations

import os
import re

from distrib.storage.location import Location


def remove_orphans(location: Location) -> None:
    """Remove the temporary files of dead processes that were to become `location`.

    Args:
        location: The file; a remote store holds nothing unfinished. Its name may hold `str.format`
            placeholders, its folder may not (then nothing is removed).
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
    # Our own number is a dead process's too: in a container every attempt has the same one, and
    # callbacks write from the training thread, which is here.
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
