from typing import Any

import keras
import pytest

import distrib
from distrib import cluster as module
from distrib.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_current", None)


def test_without_init_a_process_is_a_job_by_itself() -> None:
    assert distrib.current().kind == "local"
    assert distrib.current() is distrib.current()


def test_without_init_one_of_many_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(ConfigurationError, match=r"one of several \(horovod\) and has not"):
        distrib.current()


def test_local_scope_and_optimizer_change_nothing() -> None:
    cluster = distrib.init("local")
    optimizer = keras.optimizers.SGD()
    before = dict(vars(optimizer))
    with cluster.scope():
        assert cluster.optimizer(optimizer) is optimizer
    assert vars(optimizer) == before


def test_a_single_process_accumulates_gradients_too() -> None:
    optimizer = distrib.init("local").optimizer("sgd", backward_passes_per_step=3)
    assert optimizer.gradient_accumulation_steps == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adamm"}, "`optimizer='adamm'` is not a keras"),
        ({"compression": "int8"}, "`compression='int8'` is unknown; choose None, 'fp16'"),
        ({"op": "mean"}, "`op='mean'` is unknown"),
        ({"backward_passes_per_step": 0}, "`backward_passes_per_step=0` must be"),
    ],
)
def test_invalid_optimizer_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        distrib.init("local").optimizer(**{"optimizer": "sgd", **arguments})


def test_collectives_of_a_single_process() -> None:
    collectives = distrib.init("local").collectives
    assert collectives.allreduce([1, 2], "max").tolist() == [1, 2]
    assert collectives.broadcast({"a": 1}) == {"a": 1}
    assert collectives.allgather("x") == ["x"]
    collectives.barrier()


def test_dataset_has_the_global_batches() -> None:
    dataset = distrib.init("local").dataset(([1, 2, 3], [4, 5, 6]), batch_size=2)
    assert len(dataset) == 2


def test_repr_names_backend_and_rank() -> None:
    assert repr(distrib.init("local")) == "Cluster(kind='local', rank=0, size=1, num_replicas=1)"
