from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from driving import EPOCHS, POSITIONS, STEPS, Position, drive, later_than, make_data, make_model

from distrib.callbacks import LearningRateWarmup
from distrib.errors import ConfigurationError


class Rates(keras.callbacks.Callback):
    """Notes the rate that each batch is trained with; stands before what changes it again."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.rates.append(float(self.model.optimizer.learning_rate))

    def get_state(self) -> dict[str, Any]:
        return {"rates": list(self.rates)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.rates = list(state["rates"])


def model_at(rate: float) -> keras.Model:
    return make_model(optimizer=keras.optimizers.SGD(rate))


def rates(warmup: LearningRateWarmup, rate: float = 0.8) -> list[float]:
    noted = Rates()
    drive([noted, warmup], model_at(rate))
    return noted.rates


def test_rises_linearly_from_the_first_rate_to_the_target() -> None:
    warmup = LearningRateWarmup(warmup_epochs=2, initial_lr=0.0)
    assert rates(warmup) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8])


@pytest.mark.usefixtures("not_chief")
def test_first_rate_is_that_of_one_replica() -> None:
    # The fixture's cluster has two replicas.
    assert rates(LearningRateWarmup(2)) == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.8])


@pytest.mark.usefixtures("not_chief")
def test_both_rates_may_be_given() -> None:
    warmup = LearningRateWarmup(1.5, initial_lr=0.1, target_lr=0.4)
    assert rates(warmup) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_one_replica_has_nothing_to_warm_up() -> None:
    class Own(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = 0.5

    noted = Rates()
    drive([noted, LearningRateWarmup(2), Own()], model_at(0.8))
    assert noted.rates == [0.5] * (EPOCHS * STEPS)
    assert rates(LearningRateWarmup(2, target_lr=0.5)) == [0.5] * (EPOCHS * STEPS)
    assert rates(LearningRateWarmup(0, 0.1, 0.5)) == [0.5] * (EPOCHS * STEPS)


@pytest.mark.parametrize("index", [0, 1])
def test_other_callbacks_have_the_rate_after_the_warmup(index: int) -> None:
    noted = Rates()
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr if epoch < 1 else 0.3)
    callbacks: list[Any] = [LearningRateWarmup(1, initial_lr=0.0), noted]
    callbacks.insert(index, scheduler)
    model = model_at(0.8)
    listed = keras.callbacks.CallbackList(callbacks, model=model, epochs=2, steps=2)
    listed.on_train_begin()
    for epoch in range(2):
        listed.on_epoch_begin(epoch)
        for batch in range(2):
            listed.on_train_batch_begin(batch)
            listed.on_train_batch_end(batch, {"loss": 1.0})
        listed.on_epoch_end(epoch, {"loss": 1.0})
    assert noted.rates[2:] == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize("snapshot_at", POSITIONS)
def test_rates_are_those_of_an_uninterrupted_run(
    snapshot_at: Position, capsys: pytest.CaptureFixture[str]
) -> None:
    def make() -> list[Any]:
        return [Rates(), LearningRateWarmup(1.5, initial_lr=0.1, verbose=1)]

    whole = make()
    drive(whole, model_at(0.8))
    assert capsys.readouterr().out.count("LearningRateWarmup finished") == 1
    snapshot = drive(
        make(), model_at(0.8), snapshot_at=snapshot_at, kill_at=later_than(snapshot_at)[-1]
    )
    ours = make()
    # The restored optimizer has a rate of the warm-up, which is not the target.
    drive(ours, model_at(0.8), resume=snapshot)
    assert ours[0].rates == whole[0].rates


def test_target_survives_a_restart_with_another_rate() -> None:
    snapshot = drive(
        [LearningRateWarmup(2, initial_lr=0.0)],
        model_at(0.8),
        snapshot_at=(1, 0),
        kill_at=(1, 0),
    )
    model = model_at(0.123)
    drive([LearningRateWarmup(2, initial_lr=0.0)], model, resume=snapshot)
    assert float(model.optimizer.learning_rate) == np.float32(0.8)


def test_rate_is_logged_and_steps_in_one_call_are_counted() -> None:
    model = make_model(
        optimizer=keras.optimizers.SGD(0.8), run_eagerly=False, steps_per_execution=2
    )
    x, y = make_data()
    history = model.fit(
        x, y, batch_size=4, epochs=3, callbacks=[LearningRateWarmup(1, 0.0)], verbose=0
    )
    assert history.history["learning_rate"] == [np.float32(0.8)] * 3


def test_wrapped_optimizer() -> None:
    model = make_model(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.8)))
    noted = Rates()
    drive([noted, LearningRateWarmup(1, initial_lr=0.0)], model)
    assert noted.rates[0] == 0.0
    assert noted.rates[-1] == np.float32(0.8)


def test_unknown_number_of_steps_is_refused() -> None:
    warmup = LearningRateWarmup()
    warmup.set_model(make_model())
    warmup.set_params({"steps": None})
    with pytest.raises(ConfigurationError, match="steps_per_epoch"):
        warmup.on_train_begin()


@pytest.mark.parametrize("wrap", [False, True])
def test_schedule_in_the_optimizer_is_refused(wrap: bool) -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    optimizer = keras.optimizers.SGD(schedule)
    if wrap:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    with pytest.raises(ConfigurationError, match="ExponentialDecay"):
        drive([LearningRateWarmup()], make_model(optimizer=optimizer))


@pytest.mark.parametrize("name", ["warmup_epochs", "initial_lr", "target_lr"])
def test_negative_arguments_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`{name}=-1` must not be negative"):
        LearningRateWarmup(**{name: -1})
