from typing import Any

import pytest

from distrib.errors import CheckpointMismatchError
from distrib.state.differences import check_data, differences_between

DATA = {"source": "arrays", "num_examples": 64}


def description(optimizer: str | None, *paths: str) -> dict[str, Any]:
    variables = [
        {"group": "model", "path": path, "shape": [2], "dtype": "float32"} for path in paths
    ]
    return {"optimizer": optimizer, "variables": variables}


@pytest.mark.parametrize(
    ("saved", "here", "lines"),
    [
        (description("Adam", "a", "b"), description("Adam", "a", "b"), []),
        (description("Adam", "dense_1/a"), description("Adam", "dense_7/a"), []),
        (
            description("Adam", "a"),
            description("SGD", "a"),
            ["optimizer: checkpoint has Adam, this run has SGD"],
        ),
        (
            description(None, "a", "b"),
            description(None, "a"),
            ["model: only the checkpoint has b (2,) float32"],
        ),
        (
            description(None, "a"),
            description(None, "c", "b"),
            [
                "model: checkpoint has a (2,) float32, this run has c (2,) float32",
                "model: only this run has b (2,) float32",
            ],
        ),
    ],
)
def test_differences_of_models(
    saved: dict[str, Any], here: dict[str, Any], lines: list[str]
) -> None:
    assert list(differences_between(saved, here)) == lines


def test_the_same_data_are_taken() -> None:
    check_data(DATA, dict(DATA))
    check_data(None, None)


@pytest.mark.parametrize(
    ("saved", "here", "difference"),
    [
        (DATA, {**DATA, "num_examples": 65}, "num_examples: checkpoint has 64, this run has 65"),
        (DATA, None, "checkpoint has a cluster.dataset, this run has data that is not"),
        (None, DATA, "checkpoint has data that is not a cluster.dataset, this run has a"),
    ],
)
def test_other_data_are_refused(saved: Any, here: Any, difference: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=difference):
        check_data(saved, here)
