from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distrib.storage import local_files
from distrib.storage.local_files import replacing


def test_replacing_creates_folders_and_keeps_suffixes(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "model.weights.h5"
    with replacing(target) as temporary:
        assert temporary.name.endswith(".weights.h5")
        assert temporary.parent == target.parent
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_replacement_leaves_only_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "log.csv"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_created_once(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    target = tmp_path / "new" / "claim"
    contents = [bytes([number]) * 1000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda content: local_files.create(target, content), contents))
    assert made.count(True) == 1
    assert target.read_bytes() == contents[made.index(True)]
    assert list(target.parent.iterdir()) == [target]


def test_other_errors_of_a_link_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        local_files.create(tmp_path / "claim", b"x")
    assert list(tmp_path.iterdir()) == []
