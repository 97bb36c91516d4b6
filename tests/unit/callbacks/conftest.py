"""Fixtures: a process that is not the chief, saves that are not skipped, uploads that fail.

They also make `driving.py` beside this file importable.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import distrib.cluster
from distrib.checkpoint.saver import Saver
from distrib.cluster import Cluster
from distrib.collectives import SingleProcess
from distrib.storage.uploads import UploadError, uploads
from distrib.training import trainer_wrapper

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def not_chief(monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = SimpleNamespace(
        kind="local", rank=1, size=2, local_rank=1, num_replicas=2, collectives=SingleProcess()
    )
    monkeypatch.setattr(distrib.cluster, "_current", Cluster(backend))
    # There is no other rank that a `fit` could be synchronized with.
    monkeypatch.setattr(trainer_wrapper, "_has_ranks", lambda: False)


@pytest.fixture
def every_save_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none is skipped, however short the epochs are."""
    monkeypatch.setattr(Saver, "idle", property(lambda saver: saver.wait() is None))


@pytest.fixture
def no_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory file system accepts the check before training, and refuses uploads."""

    def denied(*_: Any) -> None:
        raise PermissionError("not you")

    monkeypatch.setattr(MemoryFileSystem, "put_file", denied)


@pytest.fixture
def failed_upload(no_uploads: None, memory_folder: Any) -> None:
    """The upload of a callback's file has failed, and the error is not raised yet."""
    with uploads.replacing(memory_folder.location() / "some.png") as temporary:
        temporary.write_bytes(b"x")
    with pytest.raises(UploadError):
        uploads.pending().wait()
