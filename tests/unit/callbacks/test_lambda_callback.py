from __future__ import annotations

from typing import Any

import pytest
from driving import EPOCHS, drive

from distrib.callbacks import LambdaCallback


def make(seen: list[int]) -> LambdaCallback:
    def set_state(state: dict[str, Any]) -> None:
        seen[:] = state["seen"]

    return LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(epoch),
        get_state=lambda: {"seen": list(seen)},
        set_state=set_state,
    )


def test_functions_may_have_a_state() -> None:
    snapshot = drive([make([])], snapshot_at=(2, 0), kill_at=(2, 1))
    seen: list[int] = []
    drive([make(seen)], resume=snapshot)
    assert seen == list(range(EPOCHS))


def test_without_them_there_is_none() -> None:
    callback = LambdaCallback(on_train_begin=lambda logs: None)
    assert callback.get_state() == {}
    callback.set_state({})


@pytest.mark.usefixtures("not_chief")
def test_functions_run_on_every_process() -> None:
    seen: list[int] = []
    drive([make(seen)])
    assert seen == list(range(EPOCHS))
