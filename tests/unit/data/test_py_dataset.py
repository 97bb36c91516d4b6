from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.data.order import Shard
from distrib.data.py_dataset import PyDatasetBatches
from distrib.data.py_dataset_order import BatchOrder
from distrib.errors import ConfigurationError


class Numbers(keras.utils.PyDataset):
    """Batch `i` holds `size` times the number `i`; the last one holds `last` times its own."""

    def __init__(self, count: int | None = 5, last: int = 2, **how: Any) -> None:
        super().__init__(**how)
        self.count, self.last = count, last
        self.asked: list[int] = []

    @property
    def num_batches(self) -> int | None:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        size = self.last if index + 1 == self.count else 4
        return np.full((size, 3), index), np.full(size, index)


def order(count: int | None = 5, steps: int = 5, shuffle: bool = True, **shard: int) -> BatchOrder:
    return BatchOrder(count, steps, shuffle, Shard(**shard))


def numbers_in(batches: Any) -> list[int]:
    return [int(y[0]) for _, y in batches]


def epoch(which: BatchOrder, epoch: int, seed: int = 1) -> list[int]:
    return list(which.numbers(seed, epoch, 0))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_pass_begins_at_any_batch_without_building_those_before(workers: int) -> None:
    source = Numbers(20, workers=workers, max_queue_size=4)
    batches = PyDatasetBatches(source, order(20, 20), seed=1)
    assert source.asked == [0, 1]  # For the shapes, as Keras does.
    source.asked.clear()
    batches.seek(3, 17)
    expected = epoch(order(20, 20), 3)[17:]
    assert numbers_in(batches) == expected
    assert sorted(source.asked) == sorted(expected)
    assert numbers_in(batches) == epoch(order(20, 20), 4)
    assert len(batches) == batches.cardinality() == batches.num_batches == 20


def test_batches_of_other_shapes_have_the_spec_that_keras_gives_them() -> None:
    class Ragged(Numbers):
        def __getitem__(self, index: int) -> Any:
            return {"text": np.zeros((2, index + 3)), "more": np.ones((2, 1))}

    spec = PyDatasetBatches(Ragged(), order()).element_spec
    assert spec == {
        "text": tf.TensorSpec((None, None), tf.float64),
        "more": tf.TensorSpec((None, 1), tf.float64),
    }


def test_an_error_names_the_batch_and_shows_the_line_of_the_user() -> None:
    class Broken(Numbers):
        def __getitem__(self, index: int) -> Any:
            if index == 3:
                raise KeyError("no such picture")
            return super().__getitem__(index)

    with pytest.raises(tf.errors.UnknownError) as raised:
        list(PyDatasetBatches(Broken(workers=2), order()))
    assert "KeyError: 'no such picture'" in str(raised.value)
    assert "This was batch 3 of Broken." in str(raised.value)
    assert "test_py_dataset.py" in str(raised.value)


def test_a_dataset_without_batches_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Numbers has 0 batches"):
        PyDatasetBatches(Numbers(0), order(0, 0))


def test_the_short_last_batch_weighs_as_much_as_its_examples() -> None:
    ranks = [
        PyDatasetBatches(Numbers(5, last=2), order(5, 3, False, rank=rank, size=2))
        for rank in range(2)
    ]
    shares = [[each.share(step) for step in range(3)] for each in ranks]
    # The last step: 2 examples on rank 0, and 4 of a batch that comes twice on rank 1.
    assert shares == [[1, 1, 2 / 3], [1, 1, 4 / 3]]


def test_class_weights_leave_the_number_of_steps_known() -> None:
    batches = PyDatasetBatches(Numbers(), order())
    batches.seek(0, 3)
    weighted = batches.map(lambda x, y: (x, y, y)).prefetch(2)
    assert weighted.cardinality() == 5
    assert len(list(weighted)) == 2


def test_a_step_on_other_ranks_goes_on_after_the_same_batches() -> None:
    assert PyDatasetBatches(Numbers(12), order(12, 12)).step_of(3, size=2) == 6
    assert PyDatasetBatches(Numbers(12), order(12, 4, size=3)).step_of(7, size=1) == 2
