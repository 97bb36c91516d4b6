from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.gradients.step_payload import Request, StepPayload


def step(payload: StepPayload, others: Any = 0.0) -> float | None:
    """Exchange the payload as a train step does; `others` are the numbers of another rank."""

    @tf.function
    def run() -> None:
        payload.unpack(payload.pack() + others)

    run()
    return payload.read()


def test_nothing_is_agreed_without_a_request() -> None:
    payload = StepPayload()
    assert step(payload) is None
    assert payload.agreed == frozenset()


@pytest.mark.parametrize("request_", Request)
def test_a_request_of_this_rank_is_agreed_once(request_: Request) -> None:
    payload = StepPayload()
    payload.request(request_, True)
    assert payload.is_requested(request_)
    step(payload)
    assert payload.agreed == {request_}
    assert not payload.is_requested(request_)
    step(payload)
    assert payload.agreed == frozenset()


def test_a_request_of_another_rank_is_agreed() -> None:
    payload = StepPayload()
    step(payload, tf.constant([0.0, 0.5, 0.0, 0.0, 0.0]))  # An average is not a whole number.
    assert payload.agreed == {Request.STOP}


def test_a_withdrawn_request_is_not_agreed() -> None:
    payload = StepPayload()
    payload.request(Request.SAVE, True)
    payload.request(Request.SAVE, False)
    step(payload)
    assert payload.agreed == frozenset()


def test_a_request_is_not_agreed_again_without_a_step() -> None:
    payload = StepPayload()
    payload.request(Request.PREEMPT, True)
    step(payload)
    payload.read()
    assert payload.agreed == frozenset()


def test_the_loss_is_averaged_over_all_ranks() -> None:
    payload = StepPayload()
    payload.loss_tracker = tracker = keras.metrics.Mean()
    tracker.update_state(2.0, sample_weight=3.0)
    assert step(payload, tf.constant([0.0, 0.0, 0.0, 6.0, 1.0])) == 3.0
    tracker.reset_state()
    assert step(payload) is None


def test_a_loss_of_nan_is_passed_on() -> None:
    payload = StepPayload()
    payload.loss_tracker = tracker = keras.metrics.Mean()
    tracker.update_state(np.nan)
    loss = step(payload)
    assert loss is not None
    assert np.isnan(loss)


def test_the_share_of_a_rank_can_be_set() -> None:
    payload = StepPayload()
    assert float(payload.share) == 1.0
    payload.set_share(0.75)
    assert float(payload.share) == 0.75
