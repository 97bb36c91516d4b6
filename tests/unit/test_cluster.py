import pytest

import distrib
from distrib import cluster as module
from distrib.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_current", None)


def test_a_laptop_needs_no_configuration() -> None:
    cluster = distrib.init()
    assert cluster.kind == "local"
    assert (cluster.rank, cluster.size, cluster.local_rank, cluster.num_replicas) == (0, 1, 0, 1)
    assert cluster.is_chief
    assert distrib.current() is cluster


def test_without_init_a_process_is_a_job_of_its_own() -> None:
    assert distrib.current().kind == "local"
    assert distrib.current() is distrib.current()


def test_local_scope_and_optimizer_change_nothing() -> None:
    cluster = distrib.init("local")
    optimizer = object()
    with cluster.scope():
        assert cluster.optimizer(optimizer) is optimizer


def test_collectives_of_one_process() -> None:
    collectives = distrib.init("local").collectives
    assert collectives.allreduce([1, 2], "max").tolist() == [1, 2]
    assert collectives.broadcast({"a": 1}) == {"a": 1}
    assert collectives.allgather("x") == ["x"]
    collectives.barrier()


def test_unknown_backend() -> None:
    with pytest.raises(ConfigurationError, match="`backend='horovd'` is unknown"):
        distrib.init("horovd")  # type: ignore[arg-type]


def test_devices_do_not_fit_local() -> None:
    with pytest.raises(ConfigurationError, match="`devices=2` does not fit"):
        distrib.init("local", devices=2)


@pytest.mark.parametrize("variable", ["HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_many_processes_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "4")
    with pytest.raises(ConfigurationError, match=f"{variable}=4"):
        distrib.init()
    monkeypatch.setenv(variable, "1")
    distrib.init()


def test_several_workers_of_tf_config_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}}')
    with pytest.raises(ConfigurationError, match="TF_CONFIG"):
        distrib.init()
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}}')
    distrib.init()
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(ConfigurationError, match="TF_CONFIG is not JSON"):
        distrib.init()


def test_dataset_knows_the_replicas() -> None:
    dataset = distrib.init("local").dataset(([1, 2, 3], [4, 5, 6]), batch_size=2)
    assert len(dataset) == 2


def test_repr_says_who_this_is() -> None:
    assert repr(distrib.init("local")) == "Cluster(kind='local', rank=0, size=1, num_replicas=1)"
