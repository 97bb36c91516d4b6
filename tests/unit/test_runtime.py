from typing import Any

import pytest

import distrib
from distrib import cluster as module
from distrib.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_current", None)


def test_a_single_process_needs_no_configuration() -> None:
    cluster = distrib.init()
    assert cluster.kind == "local"
    assert (cluster.rank, cluster.size, cluster.local_rank, cluster.num_replicas) == (0, 1, 0, 1)
    assert cluster.is_chief
    assert distrib.current() is cluster


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`backend='horovd'` is unknown"):
        distrib.init("horovd")  # type: ignore[arg-type]


def test_several_devices_of_a_local_backend_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="`devices=2` does not fit"):
        distrib.init("local", devices=2)


@pytest.mark.parametrize("backend", ["local", "mirrored"])
def test_a_single_process_backend_is_refused_to_one_of_many_processes(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ConfigurationError, match=r"started as one of several \(horovod\)"):
        distrib.init(backend)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    distrib.init(backend)
