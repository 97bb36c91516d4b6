import threading
from typing import Any

import numpy as np
import pytest

from distrib.collectives import SingleProcess
from distrib.errors import ConfigurationError
from distrib.training.rank_comparison import gather_aspects, plain, ranks, refuse_differences


class Threads(SingleProcess):
    """Collectives of ranks that are threads."""

    def __init__(self, size: int) -> None:
        self.size, self.calls, self._barrier = size, 0, threading.Barrier(size)
        self._sent: dict[int, Any] = {}
        self.rank = threading.local()

    def allgather(self, value: Any) -> list[Any]:
        self._sent[self.rank.number] = value
        self._barrier.wait()
        gathered = [self._sent[rank] for rank in range(self.size)]
        self.calls += self.rank.number == 0
        self._barrier.wait()
        return gathered


def gather(*aspects: dict[str, Any]) -> tuple[list[dict[str, list[Any]]], int]:
    """What each rank gets, and the number of collectives."""
    collectives, results = Threads(len(aspects)), {}

    def run(rank: int) -> None:
        collectives.rank.number = rank
        results[rank] = gather_aspects(aspects[rank], collectives)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(aspects))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return [results[rank] for rank in range(len(aspects))], collectives.calls


def test_ranks_that_agree_exchange_digests_only() -> None:
    same = {"epochs": 3, "x": {"seed": 1}}
    results, calls = gather(same, dict(same))
    assert results == [{"epochs": [3, 3], "x": [{"seed": 1}] * 2}] * 2
    assert calls == 1


def test_what_differs_is_exchanged_in_full() -> None:
    results, calls = gather({"epochs": 3, "x": 1}, {"epochs": 4, "x": 1}, {"x": 1, "y": None})
    expected = {"epochs": [3, 4, None], "x": [1, 1, 1], "y": [None, None, None]}
    assert results == [expected] * 3
    assert calls == 2


def test_differences_are_named_by_path_and_rank() -> None:
    layers = [[{"class": "Dense", "units": units}] for units in (4, 4, 4, 5)]
    with pytest.raises(ConfigurationError) as caught:
        refuse_differences({"epochs": [3, 4, 3, 3], "layers": layers, "same": [1] * 4}, "Do this.")
    assert str(caught.value) == (
        "The ranks differ: `epochs` is 3 on ranks 0, 2, 3, 4 on rank 1; "
        "`layers[0].units` is 4 on ranks 0-2, 5 on rank 3. Do this."
    )


@pytest.mark.parametrize(
    ("by_rank", "message"),
    [
        ([{"class": "SGD", "momentum": 0.0}, {"class": "Adam"}], "`it.class` is 'SGD' on rank 0, "),
        ([{"class": "a dataset", "seed": 1}, None], "`it` is a dataset on rank 0, None on rank 1"),
        ([{"a": 1}, {}], "`it.a` is 1 on rank 0, missing on rank 1"),
        ([[1], [1, 2]], "`it` is a list of 1 on rank 0, a list of 2 on rank 1"),
        (["x" * 999, "y"], "xxx... on rank 0, 'y' on rank 1"),
        ([dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2)], ", and 2 more. Do this."),
    ],
)
def test_differences_of_one_aspect(by_rank: list[Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        refuse_differences({"it": by_rank}, "Do this.")
    assert message in str(caught.value)


def test_ranks_that_agree_are_not_refused() -> None:
    refuse_differences({"nan": [float("nan")] * 2, "x": [{"a": [1]}, {"a": [1]}]}, "")


def test_values_that_json_lacks_are_named_by_their_type() -> None:
    code = {"class_name": "__lambda__", "config": {"code": "4wEA"}}
    value = {
        1: np.float32(0.5),
        "name": "dense_7",
        "of": (np.zeros(2), threading.Lock()),
        "f": code,
    }
    assert plain(value, frozenset({"name"})) == {
        "1": 0.5,
        "of": ["array (2,) float64 374708ff", "lock"],
        "f": "lambda",
    }


def test_ranks_in_words() -> None:
    assert [ranks([3]), ranks([0, 1]), ranks([1, 2, 3]), ranks([0, 2, 3])] == [
        *("rank 3", "ranks 0, 1", "ranks 1-3", "ranks 0, 2, 3"),
    ]
