import json

import pytest

from distrib.environment import (
    UNSUPERVISED,
    Supervision,
    grace_seconds,
    is_chief,
    launched_as,
    supervision,
    tf_config,
)
from distrib.errors import ConfigurationError


def variables(cluster: object) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster})}


def task(kind: str, index: int, **cluster: object) -> dict[str, str]:
    config = {"cluster": cluster, "task": {"type": kind, "index": index}}
    return {"TF_CONFIG": json.dumps(config)}


@pytest.mark.parametrize(
    ("environment", "backend"),
    [
        ({}, None),
        ({"HOROVOD_SIZE": "1"}, "horovod"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "horovod"),
        ({"PMI_SIZE": "2"}, "horovod"),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"}, None),
        (variables({"worker": ["a:1"]}), None),
        (variables({"chief": ["a:1"], "worker": ["b:1"]}), "multiworker"),
        ({"HOROVOD_SIZE": "2", **variables({"worker": ["a:1", "b:1"]})}, "horovod"),
    ],
)
def test_the_launcher_is_detected(environment: dict[str, str], backend: str | None) -> None:
    assert launched_as(environment) == backend


def test_the_chief_is_the_first_worker() -> None:
    config = tf_config(variables({"worker": ["b:1", "c:1"], "chief": ["a:1"]}))
    assert config.workers == ["a:1", "b:1", "c:1"]


@pytest.mark.parametrize(
    ("environment", "chief"),
    [
        ({}, True),
        ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0", "PMI_RANK": "1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"PMI_SIZE": "1", "PMI_RANK": "1"}, True),
        (task("chief", 0, chief=["a:1"], worker=["b:1"]), True),
        (task("worker", 0, chief=["a:1"], worker=["b:1"]), False),
        (task("worker", 0, worker=["a:1", "b:1"]), True),
        (task("worker", 1, worker=["a:1", "b:1"]), False),
    ],
)
def test_the_chief_is_the_one_that_writes(environment: dict[str, str], chief: bool) -> None:
    assert is_chief(environment) == chief


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"cluster": []}', '{"cluster": {"worker": 2}}'),
        *('{"task": "worker"}', '{"task": {"type": "worker", "index": "x"}}'),
    ],
)
def test_an_invalid_tf_config(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"TF_CONFIG=.* is not of the form \{"):
        launched_as({"TF_CONFIG": text})


def test_the_variables_of_the_supervisor() -> None:
    assert supervision({}) == UNSUPERVISED == supervision({"DISTRIB_ATTEMPTS": ""})
    variables = {
        "DISTRIB_ATTEMPTS": "5",
        "DISTRIB_STALLED_ATTEMPTS": "2",
        "DISTRIB_LAST_END": "rank 1 was killed",
    }
    assert supervision(variables) == Supervision(5, 2, "rank 1 was killed")


@pytest.mark.parametrize("text", ["-1", "five", "2.5"])
def test_an_invalid_number_of_attempts(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"DISTRIB_ATTEMPTS='{text}' is not a whole"):
        supervision({"DISTRIB_ATTEMPTS": text})


@pytest.mark.parametrize(("text", "seconds"), [("", None), ("0.5", 0.5), ("120", 120.0)])
def test_the_grace_period(text: str, seconds: float | None) -> None:
    assert grace_seconds({"DISTRIB_GRACE_SECONDS": text}) == seconds
    assert grace_seconds({}) is None


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1m"])
def test_an_invalid_grace_period(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"DISTRIB_GRACE_SECONDS='{text}' is not"):
        grace_seconds({"DISTRIB_GRACE_SECONDS": text})
