import json
from typing import Any

import pytest

from distrib.backends.multiworker import worker_addresses
from distrib.errors import ConfigurationError


def variables(cluster: dict[str, list[str]], task: Any) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


WORKERS = {"worker": ["h0:1", "h1:1", "h1:2"]}


@pytest.mark.parametrize(("index", "local_rank"), [(0, 0), (1, 0), (2, 1)])
def test_workers_are_ranks(index: int, local_rank: int) -> None:
    addresses = worker_addresses(variables(WORKERS, {"type": "worker", "index": index}))
    assert (addresses.rank, addresses.local_rank) == (index, local_rank)
    assert addresses.addresses == WORKERS["worker"]
    others = [f"/job:worker/replica:0/task:{other}" for other in range(3) if other != index]
    assert addresses.peers == others


def test_the_chief_is_rank_0() -> None:
    cluster = {"worker": ["h1:1"], "chief": ["h0:1"]}
    chief = worker_addresses(variables(cluster, {"type": "chief", "index": 0}))
    worker = worker_addresses(variables(cluster, {"type": "worker", "index": "0"}))
    assert (chief.rank, chief.peers) == (0, ["/job:worker/replica:0/task:0"])
    assert (worker.rank, worker.peers) == (1, ["/job:chief/replica:0/task:0"])
    assert chief.addresses == worker.addresses == ["h0:1", "h1:1"]


@pytest.mark.parametrize(
    ("cluster", "task", "message"),
    [
        ({}, {}, "'multiworker' needs TF_CONFIG"),
        (WORKERS, {"type": "worker", "index": 3}, "its cluster has 3 of that type"),
        (WORKERS, {"type": "worker"}, "its cluster has 3 of that type"),
        (WORKERS, {"type": "evaluator", "index": 0}, "a task of type 'evaluator'"),
        ({**WORKERS, "ps": ["h2:1"]}, {"type": "worker", "index": 0}, "a task of type 'ps'"),
        (WORKERS, {}, "a task of type ''"),
    ],
)
def test_an_invalid_task_is_refused(cluster: dict[str, list[str]], task: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        worker_addresses(variables(cluster, task))


def test_without_tf_config_the_backend_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="start the script with `distrib run"):
        worker_addresses({})
