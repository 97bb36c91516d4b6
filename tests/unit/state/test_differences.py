from typing import Any

import pytest

from distrib.state.differences import differences_between


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
