"""Batches of a pipeline after its state was saved and restored, by each kind of reader."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distrib.data.pipelines.batch_readers import ReadAhead
from distrib.data.pipelines.direct_reader import DirectReader
from distrib.data.pipelines.feed import Feed
from distrib.data.pipelines.passes import Passes
from distrib.data.pipelines.rows import Rows, spec_of_rows

BATCHES, EPOCHS = 6, 3


def shuffled() -> Any:
    return tf.data.Dataset.range(22).shuffle(10, seed=3).batch(4)


def shuffled_twice() -> Any:
    return tf.data.Dataset.range(22).shuffle(9, seed=3).shuffle(5, seed=4).batch(4).prefetch(2)


def from_python() -> Any:
    signature = tf.TensorSpec([], tf.int64)
    data = tf.data.Dataset.from_generator(lambda: iter(range(22)), output_signature=signature)
    return data.batch(4)


def feed(pipeline: Any, kind: str, shuffles: int, endless: bool = False) -> Feed:
    passes = Passes(pipeline)
    savable = kind != "replay"
    assert savable or not passes.is_savable() or shuffles == 0
    if kind == "direct":
        reader: Any = DirectReader(passes, shuffles, endless)
    else:
        reader = ReadAhead(
            passes,
            pipeline.element_spec,
            savable=savable,
            shuffles=shuffles,
            skip_ends=endless,
            once=False,
            keep=True,
            ahead=2,
        )
    return Feed(pipeline, reader, pipeline.element_spec, endless, [])


def train(feed: Feed, epoch: int, first: int = 0, end: int = BATCHES) -> list[Any]:
    """Draw and train on batches of an epoch, as `fit` does."""
    feed.seek(epoch, first)
    seen = []
    for batch in itertools.islice(feed, end - first):
        seen.append(batch.numpy().tolist())
        feed.trained(1)
    return seen


@pytest.mark.parametrize(
    ("make", "shuffles", "before", "after"),
    [
        (shuffled, 1, "direct", "ahead"),
        (shuffled_twice, 2, "ahead", "ahead"),
        pytest.param(shuffled, 1, "ahead", "direct", marks=pytest.mark.exhaustive),
        pytest.param(shuffled_twice, 2, "direct", "direct", marks=pytest.mark.exhaustive),
        (from_python, 0, "replay", "replay"),
    ],
)
def test_goes_on_with_the_very_next_batch(
    make: Callable[[], Any], shuffles: int, before: str, after: str
) -> None:
    whole = feed(make(), before, shuffles)
    epochs = [train(whole, epoch) for epoch in range(EPOCHS)]
    if shuffles:
        assert epochs[0] != epochs[1]
    for epoch, end in ((0, 5), (1, BATCHES)):
        first = feed(make(), before, shuffles)
        for earlier in range(epoch):
            train(first, earlier)
        train(first, epoch, end=end)
        state = first.get_state()
        assert train(first, epoch + 1) == epochs[epoch + 1] or end < BATCHES
        second = feed(make(), after, shuffles)
        second.set_state(state)
        second.set_state(state)  # As when a run goes on in the middle of an epoch.
        rest = train(second, epoch, end) if end < BATCHES else []
        assert rest == epochs[epoch][end:]
        assert train(second, epoch + 1) == epochs[epoch + 1]


def test_saving_does_not_change_what_is_drawn_in_the_graph() -> None:
    def long() -> Any:
        return tf.data.Dataset.range(280).shuffle(500, seed=3).batch(4).prefetch(10)

    @tf.function  # type: ignore[untyped-decorator]
    def draw(iterator: Any) -> Any:
        return next(iterator)

    def epochs(data: Feed, first: int, saved: Callable[[int], None]) -> list[Any]:
        seen = []
        for epoch in range(first, EPOCHS):
            data.seek(epoch, 0)
            iterator = iter(data)
            for step in range(70):
                seen.append(draw(iterator).numpy().tolist())
                data.trained(1)
                saved(epoch * 70 + step + 1)
        return seen

    expected = epochs(feed(long(), "direct", 1), 0, lambda step: None)
    states: dict[int, Any] = {}
    data = feed(long(), "direct", 1)

    def save(step: int) -> None:
        if step % 70 in (0, 20, 61, 65, 66, 69):
            states[step] = data.get_state()

    assert epochs(data, 0, save) == expected
    assert max(len(state["ahead"]) for state in states.values()) > 2
    for kind in ("direct", "ahead"):
        second = feed(long(), kind, 1)
        second.set_state(states[66])
        assert train(second, 0, 66, 70) == expected[66:70]
        assert train(second, 1, end=70) == expected[70:140]


def test_an_endless_pass_goes_through_all_epochs() -> None:
    for kind in ("direct", "ahead"):
        whole = feed(shuffled(), kind, 1)
        expected = [batch for epoch in range(EPOCHS) for batch in train(whole, epoch)]
        endless = feed(shuffled(), kind, 1, endless=True)
        assert endless.num_batches is None
        assert [batch.numpy().tolist() for batch in endless.take(3 * BATCHES)] == expected


def test_length_of_an_epoch_is_known_at_its_end() -> None:
    pipeline = shuffled().filter(lambda batch: True)
    data = feed(pipeline, "ahead", 1)
    lengths = []
    for _ in data:
        lengths.append(data.num_batches)
        data.trained(1)
    assert lengths == [None] * BATCHES
    assert data.num_batches == BATCHES


def test_an_error_of_the_pipeline_is_raised_where_the_batch_is_wanted() -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise ValueError("no such image")

    signature = tf.TensorSpec([], tf.int64)
    pipeline = tf.data.Dataset.from_generator(fail, output_signature=signature).batch(1)
    with pytest.raises(tf.errors.OpError, match="no such image"):
        list(feed(pipeline, "replay", 0))


def test_rows_of_all_ranks_are_the_batch() -> None:
    ragged = tf.ragged.constant([[1], [2, 3], [], [4], [5]])
    batch = {"x": tf.range(5), "y": ragged, "z": tf.sparse.eye(5)}
    ranks = [Rows(rank, 3).of(batch) for rank in range(3)]
    assert [each["x"].numpy().tolist() for each in ranks] == [[0, 1], [2, 3], [4]]
    assert tf.concat([each["y"] for each in ranks], 0).to_list() == ragged.to_list()
    dense = [tf.sparse.to_dense(each["z"]) for each in ranks]
    np.testing.assert_array_equal(tf.concat(dense, 0), np.eye(5))
    assert [Rows(rank, 3).share(batch) for rank in range(3)] == [1.2, 1.2, 0.6]
    assert Rows(2, 3).of(tf.range(2)).numpy().tolist() == [0]
    assert Rows(2, 3).share(tf.range(2)) == 0
    pipeline = tf.data.Dataset.from_tensors(batch)
    assert spec_of_rows(pipeline)["x"].shape.as_list() == [None]


def test_a_step_that_ends_while_the_next_batch_is_waited_for_skips_none():
    gate = threading.Event()

    def numbers() -> Iterator[int]:
        yield 0
        gate.wait()
        yield from (1, 2, 3)

    signature = tf.TensorSpec([], tf.int64)
    generated = tf.data.Dataset.from_generator(numbers, output_signature=signature)
    pipeline = generated.apply(tf.data.experimental.assert_cardinality(4)).batch(1)
    data = feed(pipeline, "replay", 0)
    data.seek(0, 0)
    batches = iter(data)
    seen = [int(next(batches)[0])]
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(lambda: int(next(batches)[0]))  # As a strategy draws.
        while not data._reader._changed._waiters and not ahead.done():
            time.sleep(0.01)
        data.trained(1)
        gate.set()
        seen.append(ahead.result())
    assert [*seen, *(int(batch[0]) for batch in batches)] == [0, 1, 2, 3]
