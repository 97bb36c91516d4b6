from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.gradients.step_payload import Request, StepPayload


def step(payload: StepPayload, others: Any = 0.0) -> float | None:
    """What a train step does with the payload, in a job where `others` come from the other rank."""

    @tf.function
    def run() -> None:
        payload.unpack(payload.pack() + others)

    run()
    return payload.read()


def test_nothing_is_granted_that_nobody_wished_for() -> None:
    payload = StepPayload()
    assert step(payload) is None
    assert payload.agreed == frozenset()


@pytest.mark.parametrize("wish", Request)
def test_a_wish_of_this_rank_is_granted_once(wish: Request) -> None:
    payload = StepPayload()
    payload.request(wish, True)
    assert payload.is_requested(wish)
    step(payload)
    assert payload.agreed == {wish}
    assert not payload.is_requested(wish)
    step(payload)
    assert payload.agreed == frozenset()


def test_a_wish_of_another_rank_is_granted() -> None:
    payload = StepPayload()
    step(payload, tf.constant([0.0, 0.5, 0.0, 0.0, 0.0]))  # An average is not a whole number.
    assert payload.agreed == {Request.STOP}


def test_a_wish_that_is_taken_back_is_not_granted() -> None:
    payload = StepPayload()
    payload.request(Request.SAVE, True)
    payload.request(Request.SAVE, False)
    step(payload)
    assert payload.agreed == frozenset()


def test_what_was_granted_is_not_granted_again_without_a_step() -> None:
    payload = StepPayload()
    payload.request(Request.PREEMPT, True)
    step(payload)
    payload.read()
    assert payload.agreed == frozenset()


def test_the_loss_of_all_ranks() -> None:
    payload = StepPayload()
    payload.loss_tracker = tracker = keras.metrics.Mean()
    tracker.update_state(2.0, sample_weight=3.0)
    assert step(payload, tf.constant([0.0, 0.0, 0.0, 6.0, 1.0])) == 3.0
    tracker.reset_state()
    assert step(payload) is None


def test_a_loss_that_is_not_a_number_arrives() -> None:
    payload = StepPayload()
    payload.loss_tracker = tracker = keras.metrics.Mean()
    tracker.update_state(np.nan)
    loss = step(payload)
    assert loss is not None
    assert np.isnan(loss)


def test_share() -> None:
    payload = StepPayload()
    assert float(payload.share) == 1.0
    payload.set_share(0.75)
    assert float(payload.share) == 0.75
