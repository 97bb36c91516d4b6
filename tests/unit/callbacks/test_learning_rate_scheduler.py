from __future__ import annotations

import pytest
from driving import EPOCHS, POSITIONS, Position, drive, later_than, make_model

from distrib.callbacks import LearningRateScheduler


@pytest.mark.parametrize("snapshot_at", POSITIONS)
def test_recursive_schedule_is_applied_once_an_epoch(
    snapshot_at: Position, capsys: pytest.CaptureFixture[str]
) -> None:
    def make() -> LearningRateScheduler:
        return LearningRateScheduler(lambda epoch, rate: rate * 0.5, verbose=1)

    whole = make_model()
    drive([make()], whole)
    printed = capsys.readouterr().out
    assert printed.count("setting learning rate") == EPOCHS
    for kill_at in later_than(snapshot_at)[:3]:
        dead, model = make_model(), make_model()
        snapshot = drive([make()], dead, snapshot_at=snapshot_at, kill_at=snapshot_at)
        before = capsys.readouterr().out
        drive([make()], dead, resume=snapshot, kill_at=kill_at)
        capsys.readouterr()
        drive([make()], model, resume=snapshot)
        assert before + capsys.readouterr().out == printed
        assert float(model.optimizer.learning_rate) == float(whole.optimizer.learning_rate)


def test_reused_object_starts_anew() -> None:
    scheduler = LearningRateScheduler(lambda epoch, rate: rate * 0.5)
    model = make_model()
    rate = float(model.optimizer.learning_rate)
    drive([scheduler], model, resume=drive([scheduler], make_model(), snapshot_at=(0, 1)))
    model.optimizer.learning_rate = rate
    drive([scheduler], model)
    assert float(model.optimizer.learning_rate) == pytest.approx(rate * 0.5**EPOCHS)


def test_calls_by_hand_apply_the_schedule_each_time() -> None:
    scheduler = LearningRateScheduler(lambda epoch, rate: rate * 0.5)
    model = make_model()
    scheduler.set_model(model)
    rate = float(model.optimizer.learning_rate)
    scheduler.on_epoch_begin(0)
    scheduler.on_epoch_begin(0)
    assert float(model.optimizer.learning_rate) == pytest.approx(rate / 4)
