from typing import Any

import pytest

from distrib.state.differences import differences_between, match_variables


def description(optimizer: str | None, *paths: str) -> dict[str, Any]:
    variables = [
        {"group": "model", "path": path, "shape": [2], "dtype": "float32"} for path in paths
    ]
    return {"optimizer": optimizer, "variables": variables}


def variable(text: str) -> dict[str, Any]:
    group, path, size = text.split()
    return {"group": group, "path": path, "shape": [int(size)], "dtype": "float32"}


def described(*variables: str) -> dict[str, Any]:
    return {"optimizer": "Adam", "variables": [variable(text) for text in variables]}


MODEL = ("model dense/kernel 2", "model dense_1/kernel 3", "model dense_2/kernel 3")
METRICS = ("metrics loss/total 1", "metrics loss/count 1")


@pytest.mark.parametrize(
    ("saved", "here", "lines"),
    [
        (description("Adam", "a", "b"), description("Adam", "a", "b"), []),
        (description("Adam", "dense_1/a"), description("Adam", "dense_7/a"), []),
        # As of a layer that the checkpoint's script has adapted before its model was made.
        (description("Adam", "norm/mean", "a"), description("Adam", "model/norm/mean", "a"), []),
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
                "model: only the checkpoint has a (2,) float32",
                "model: only this run has c (2,) float32, b (2,) float32",
            ],
        ),
    ],
)
def test_differences_of_models(
    saved: dict[str, Any], here: dict[str, Any], lines: list[str]
) -> None:
    assert list(differences_between(saved, here)) == lines


def test_a_slot_more_says_nothing_of_the_metrics() -> None:
    saved = described(*MODEL, "optimizer adam/dense_kernel_momentum 2", *METRICS)
    here = described(
        *MODEL,
        "optimizer adam_1/dense_kernel_momentum 2",
        "optimizer adam_1/dense_1_kernel_momentum 3",
        *METRICS,
    )
    assert list(differences_between(saved, here)) == [
        "optimizer: only this run has adam_1/dense_1_kernel_momentum (3,) float32"
    ]


def test_another_shape_is_named_beside_what_is_new() -> None:
    here = described("model dense_4/kernel 2", "model out/kernel 9", "model dense_5/kernel 5")
    assert list(differences_between(described(*MODEL), here)) == [
        "model: checkpoint has dense_1/kernel (3,) float32, this run has dense_5/kernel (5,) "
        "float32",
        "model: only the checkpoint has dense_2/kernel (3,) float32",
        "model: only this run has out/kernel (9,) float32",
    ]


def test_a_layer_in_between_is_found_by_what_stands_around_it() -> None:
    here = [variable(text) for text in (MODEL[0], "model dense_1/kernel 7", *MODEL[1:])]
    match = match_variables([variable(text) for text in MODEL], here)
    assert match.new == [variable("model dense_1/kernel 7")]
    assert [new for _, new in match.same] == [variable(text) for text in MODEL]
    assert not match.missing
    assert not match.changed


def test_another_order_is_a_difference_of_its_own() -> None:
    saved, here = described("model a 2", "model b 2"), described("model b 2", "model a 2")
    (line,) = differences_between(saved, here)
    assert line == "model: a stands at another place in this run"


def test_an_empty_group_is_no_difference() -> None:
    assert list(differences_between(described(), described())) == []


def test_a_long_list_is_shortened() -> None:
    here = described(*(f"model layer{number}/kernel 2" for number in range(100)))
    (line,) = differences_between(described(), here)
    assert line.endswith("and 97 more")
