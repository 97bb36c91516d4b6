from distrib.data.order import Shard
from distrib.data.py_dataset_order import BatchOrder, EvaluationOrder


def order(count: int | None = 5, steps: int = 5, shuffle: bool = True, **shard: int) -> BatchOrder:
    return BatchOrder(count, steps, shuffle, Shard(**shard))


def epoch(which: BatchOrder, epoch: int, seed: int = 1) -> list[int]:
    return list(which.numbers(seed, epoch, 0))


def test_every_epoch_has_an_order_of_its_own_that_only_the_seed_decides() -> None:
    epochs = [epoch(order(100, 100), number) for number in (0, 1, 0)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(100))
    assert epochs[0] == epochs[2] != epochs[1]
    assert epoch(order(100, 100), 0, seed=2) != epochs[0]
    # Checkpoints depend on it.
    assert epoch(order(10, 10), 3, seed=2**62) == [5, 6, 8, 2, 1, 0, 3, 4, 7, 9]


def test_ranks_take_the_batches_of_a_step_in_the_order_of_one_process() -> None:
    alone = epoch(order(9, 9), 2)
    ranks = [epoch(order(9, 3, rank=rank, size=3), 2) for rank in range(3)]
    assert [number for step in zip(*ranks, strict=True) for number in step] == alone


def test_the_last_step_of_a_pass_is_filled_up_from_its_beginning() -> None:
    alone = epoch(order(7, 7), 1)
    ranks = [epoch(order(7, 3, rank=rank, size=3), 1) for rank in range(3)]
    taken = [number for step in zip(*ranks, strict=True) for number in step]
    assert taken == alone + alone[:2]


def test_other_steps_than_a_pass_go_on_through_the_batches() -> None:
    whole = [number for each in (0, 1) for number in epoch(order(5, 5), each)]
    assert [number for each in (0, 1, 2) for number in epoch(order(5, 3), each)] == whole[:9]
    assert epoch(order(5, 8), 0) == whole[:8]
    assert not order(5, 3).is_one_pass


def test_endless_batches_are_numbered_on_and_on() -> None:
    assert epoch(order(None, 3, False), 2) == [6, 7, 8]
    assert epoch(order(None, 3, False, rank=1, size=2), 2) == [13, 15, 17]


def test_an_evaluation_takes_every_batch_once() -> None:
    ranks = [EvaluationOrder(7, Shard(rank, 3)) for rank in range(3)]
    assert [list(each.numbers(0, 4, 0)) for each in ranks] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [each.steps for each in ranks] == [3, 2, 2]
