"""A process that is not the chief; and `driving.py` beside this file can be imported."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import distrib.cluster
from distrib.cluster import Cluster
from distrib.collectives import SingleProcess

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def not_chief(monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = SimpleNamespace(
        kind="local", rank=1, size=2, local_rank=1, num_replicas=2, collectives=SingleProcess()
    )
    monkeypatch.setattr(distrib.cluster, "_current", Cluster(backend))
