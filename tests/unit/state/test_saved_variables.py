from typing import Any

import numpy as np

from distrib.state.saved_variables import METRICS, SavedVariable, redistribute


def test_values_for_another_number_of_replicas() -> None:
    def spread(group: str, values: list[Any], count: int, seed: bool = False) -> list[Any]:
        slot = SavedVariable(group, "path", (), count, identical=False, seed=seed)
        return [value.tolist() for value in redistribute(slot, values)]

    sums = [np.float32([1, 2]), np.float32([3, 4])]
    assert spread(METRICS, sums, 1) == [[4, 6]]
    assert spread(METRICS, sums, 4) == [[1, 1.5]] * 4
    assert spread(METRICS, [np.int32(7)], 3) == [7, 0, 0]
    assert spread(METRICS, sums[:1], 2) == [[0.5, 1]] * 2
    assert spread("model", sums, 1) == [[2, 3]]
    assert spread("model", sums, 2) == [[1, 2], [3, 4]]
    counters = [np.int64([7, 1]), np.int64([9, 2])]
    assert spread("model", counters, 3) == [[7, 1]] * 3
    seeds = spread("model", [np.uint32([7, 5]), np.uint32([9, 5])], 3, seed=True)
    assert seeds[0] == [7, 5]
    assert {counter for _, counter in seeds} == {5}
    assert len({seed for seed, _ in seeds}) == 3
