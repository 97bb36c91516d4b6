from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distrib.data import contents
from distrib.data.compare_contents import compare_contents
from distrib.data.contents import contents_of

X = np.random.default_rng(0).normal(size=(1000, 5)).astype("float32")
OTHER_ROW = X.copy()
OTHER_ROW[77] = X[78]


def compare(one: Any, other: Any) -> str:
    return compare_contents(contents_of([("", one)]), contents_of([("", other)]))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (X.copy(), "same"),
        (tf.constant(X), "same"),
        (X * np.float32(1 + 2e-7), "rounding"),
        (np.nextafter(X, 9), "rounding"),
        (X[::-1], "other"),
        (OTHER_ROW, "other"),
        (np.concatenate([X[1:], X[:1]]), "other"),
    ],
)
def test_floats(other: Any, expected: str) -> None:
    assert compare(X, other) == expected


def test_halves_round_more() -> None:
    halves = X.astype("float16")
    assert compare(halves, np.nextafter(halves, np.float16(9))) == "rounding"
    assert compare(halves, halves[::-1]) == "other"


def test_whole_numbers_and_strings_do_not_round() -> None:
    labels = np.arange(100)
    assert compare(labels, list(range(100))) == "same"
    assert compare(labels, np.where(labels == 50, 51, labels)) == "other"
    assert compare(["a", "b"], np.array(["a", "b"])) == "same"
    assert compare(["a", "b"], ["a", "c"]) == "other"


@pytest.mark.parametrize(
    "leaf",
    [
        tf.ragged.constant([[1.0, 2.0], [3.0]]),
        tf.sparse.from_dense(X[:20]),
        np.full((3, 2), np.nan),
        np.zeros((2, 0)),
        tf.cast(X, tf.bfloat16),
    ],
)
def test_all_that_fit_takes(leaf: Any) -> None:
    assert compare(leaf, leaf) == "same"
    assert compare(leaf, X) != "same"


def test_of_a_large_array_blocks_over_its_whole_length_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Counted:
        shape = X.shape
        rows = 0

        def __getitem__(self, index: slice) -> Any:
            self.rows += len(X[index])
            return X[index]

    monkeypatch.setattr(contents, "_MAX_BYTES", X.nbytes // 10)
    array = Counted()
    first = contents_of([("", array)])
    assert array.rows < 120
    assert compare_contents(first, contents_of([("", X[::-1])])) == "other"
