from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.riders import Riders, Wish


def step(riders: Riders, others: Any = 0.0) -> float | None:
    """What a train step does with the riders, in a job where `others` come from the other rank."""

    @tf.function
    def run() -> None:
        riders.arrive(riders.depart() + others)

    run()
    return riders.take()


def test_nothing_is_granted_that_nobody_wished_for() -> None:
    riders = Riders()
    assert step(riders) is None
    assert riders.last == frozenset()


@pytest.mark.parametrize("wish", Wish)
def test_a_wish_of_this_rank_is_granted_once(wish: Wish) -> None:
    riders = Riders()
    riders.wish(wish, True)
    assert riders.wishes(wish)
    step(riders)
    assert riders.last == {wish}
    assert not riders.wishes(wish)
    step(riders)
    assert riders.last == frozenset()


def test_a_wish_of_another_rank_is_granted() -> None:
    riders = Riders()
    step(riders, tf.constant([0.0, 0.5, 0.0, 0.0, 0.0]))  # An average is not a whole number.
    assert riders.last == {Wish.STOP}


def test_a_wish_that_is_taken_back_is_not_granted() -> None:
    riders = Riders()
    riders.wish(Wish.SAVE, True)
    riders.wish(Wish.SAVE, False)
    step(riders)
    assert riders.last == frozenset()


def test_what_was_granted_is_not_granted_again_without_a_step() -> None:
    riders = Riders()
    riders.wish(Wish.LEAVE, True)
    step(riders)
    riders.take()
    assert riders.last == frozenset()


def test_the_loss_of_all_ranks() -> None:
    riders = Riders()
    riders.loss_tracker = tracker = keras.metrics.Mean()
    tracker.update_state(2.0, sample_weight=3.0)
    assert step(riders, tf.constant([0.0, 0.0, 0.0, 6.0, 1.0])) == 3.0
    tracker.reset_state()
    assert step(riders) is None


def test_a_loss_that_is_not_a_number_arrives() -> None:
    riders = Riders()
    riders.loss_tracker = tracker = keras.metrics.Mean()
    tracker.update_state(np.nan)
    loss = step(riders)
    assert loss is not None
    assert np.isnan(loss)


def test_share() -> None:
    riders = Riders()
    assert float(riders.share) == 1.0
    riders.weigh(0.75)
    assert float(riders.share) == 0.75
