"""Which variables of another run are counterparts; taking them over is tested in `callbacks`."""

from typing import Any

import pytest
import tensorflow as tf

from distrib.state.initial_state import find_counterparts
from distrib.state.saved_variables import SavedVariable


def slot(path: str, group: str = "model", width: int = 2) -> SavedVariable:
    return SavedVariable(group, path, (tf.Variable(tf.zeros((width,))),), 1, True, False)


def matched(old: list[Any], new: list[Any], restore: Any = ("model",)) -> dict[str, str]:
    matches = find_counterparts(
        [slot(*each).describe() for each in old], [slot(*n) for n in new], restore
    )
    return {variable.path: entry["path"] for variable, entry in matches.pairs}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # The same model, with numbers that another process has counted up.
        (["a/dense_1/k", "a/dense_2/k"], ["a/dense_2/k", "a/dense_3/k"], {2: 1, 3: 2}),
        # A layer more, in a process that has built another model before.
        (["a/dense/k", "a/dense_1/k"], ["a/dense_1/k", "a/dense_2/k", "a/dense_3/k"], {1: 0, 2: 1}),
        (["a/dense_4/k", "a/dense_5/k"], ["a/dense_6/k"], {6: 4}),
        # Names that the user has given.
        (["block_1/k", "block_2/k", "block_3/k"], ["block_2/k", "block_3/k"], {2: 2, 3: 3}),
        (["dense/k"], ["dense/k", "dense_1/k"], {0: 0}),
    ],
)
def test_numbers(old: list[str], new: list[str], expected: dict[int, int]) -> None:
    def number(path: str) -> int:
        digits = path.split("/")[-2].rpartition("_")[2]
        return int(digits) if digits.isdecimal() else 0

    pairs = matched([(path,) for path in old], [(path,) for path in new])
    assert {number(here): number(there) for here, there in pairs.items()} == expected


def test_optimizers_name_their_variables_after_the_weights() -> None:
    def model(*layers: str) -> list[Any]:
        return [
            *[(f"a/{layer}/kernel",) for layer in layers],
            ("adam_2/iteration", "optimizer"),
            ("adam_2/learning_rate", "optimizer"),
            *[(f"adam_2/a_{layer}_kernel_momentum", "optimizer") for layer in layers],
        ]

    pairs = matched(
        model("dense", "dense_1"), model("dense_1", "dense_2", "dense_3"), ("model", "optimizer")
    )
    assert pairs["a/dense_2/kernel"] == "a/dense_1/kernel"
    assert pairs["adam_2/a_dense_2_kernel_momentum"] == "adam_2/a_dense_1_kernel_momentum"
    assert "adam_2/iteration" in pairs
    assert "adam_2/learning_rate" not in pairs


def test_the_rest_is_listed() -> None:
    old = [slot("a/k"), slot("b/k"), slot("c/k", width=3), slot("d/seed_generator_state")]
    matches = find_counterparts(
        [each.describe() for each in old], [slot("a/k"), slot("c/k"), slot("e/k")], ("model",)
    )
    assert matches.lines() == [
        "only in this model: e/k (2,) float32",
        "only in the checkpoint: b/k (2,) float32",
        "of another shape: c/k (2,) float32 (there (3,))",
    ]
