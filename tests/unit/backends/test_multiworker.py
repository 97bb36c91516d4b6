import json
from typing import Any

import pytest

from distrib.backends.multiworker import place_of_this_process
from distrib.errors import ConfigurationError


def variables(cluster: dict[str, list[str]], task: Any) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


WORKERS = {"worker": ["h0:1", "h1:1", "h1:2"]}


@pytest.mark.parametrize(("index", "local_rank"), [(0, 0), (1, 0), (2, 1)])
def test_workers_are_ranks(index: int, local_rank: int) -> None:
    place = place_of_this_process(variables(WORKERS, {"type": "worker", "index": index}))
    assert (place.rank, place.local_rank) == (index, local_rank)
    assert place.addresses == WORKERS["worker"]
    others = [f"/job:worker/replica:0/task:{other}" for other in range(3) if other != index]
    assert place.peers == others


def test_the_chief_is_rank_0() -> None:
    cluster = {"worker": ["h1:1"], "chief": ["h0:1"]}
    chief = place_of_this_process(variables(cluster, {"type": "chief", "index": 0}))
    worker = place_of_this_process(variables(cluster, {"type": "worker", "index": "0"}))
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
def test_what_is_no_worker_is_refused(
    cluster: dict[str, list[str]], task: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        place_of_this_process(variables(cluster, task))


def test_without_tf_config() -> None:
    with pytest.raises(ConfigurationError, match="start the script with `distrib run"):
        place_of_this_process({})
