from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from distrib.callbacks.orphaned_files import remove_orphans
from distrib.storage.local_files import replacing
from distrib.storage.locate import locate


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_files_of_dead_processes_for_this_target_go(tmp_path: Path) -> None:
    dead = dead_pid()
    gone = [
        f".tmp-{dead}-0123abcd-best-03.keras",
        f".tmp-{os.getpid()}-0123abcd-best-04.keras",
    ]
    kept = [
        f".tmp-{os.getppid()}-0123abcd-best-03.keras",
        ".tmp-1-0123abcd-best-03.keras",
        f".tmp-{dead}-0123abcd-worst-03.keras",
        f".tmp-{dead}-0123abcd-best-03.h5",
        f".tmp-{dead}-xyz-best-03.keras",
        "best-03.keras",
    ]
    for name in gone + kept:
        (tmp_path / name).touch()
    remove_orphans(locate(tmp_path / "best-{epoch:02d}.keras", "filepath"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_name_of_what_replacing_makes_is_known(tmp_path: Path) -> None:
    target = tmp_path / "log.csv"
    with replacing(target) as temporary:
        temporary.write_text("x")
        left = temporary.name
    (tmp_path / left).touch()
    remove_orphans(locate(target, "filename"))
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_missing_folder_is_no_error(tmp_path: Path) -> None:
    remove_orphans(locate(tmp_path / "{epoch}" / "x.keras", "filepath"))


def test_a_remote_store_holds_nothing_unfinished() -> None:
    remove_orphans(locate("s3://no-such-bucket/x.keras", "filepath"))
