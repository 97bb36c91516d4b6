from typing import Any

import numpy as np
import pytest

from distrib.gradients.step_payload import StepPayload
from distrib.training import agreement as module
from distrib.training.agreement import AllRanks, OneRank, agreement


class OfTwo:
    """A cluster whose other rank requests something."""

    def __init__(self, other: Any) -> None:
        self.step_payload, self.other, self.collectives = StepPayload(), other, self

    def allreduce(self, value: Any, op: str) -> Any:
        assert op == "max"
        return np.maximum(value, self.other)


def test_one_process_decides_for_itself() -> None:
    decide = agreement()
    assert isinstance(decide, OneRank)
    decide.before_step(preempt=False, save=True)
    assert decide.after_step(preempt=True) == (True, True)
    decide.before_step(preempt=True, save=False)
    assert decide.after_step(preempt=False) == (False, False)
    assert decide.agree(preempt=False, save=True) == (False, True)


@pytest.mark.parametrize("other", [[0, 0], [1, 0], [0, 1]])
def test_between_epochs_any_rank_counts(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "current", lambda: OfTwo(other))
    assert agreement().agree(preempt=False, save=False) == tuple(map(bool, other))
    assert agreement().agree(preempt=True, save=True) == (True, True)


def test_in_training_only_what_came_back_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = OfTwo([0, 0])
    monkeypatch.setattr(module, "current", lambda: cluster)
    decide = AllRanks()
    decide.before_step(preempt=False, save=True)
    cluster.step_payload.unpack(cluster.step_payload.pack())
    cluster.step_payload.read()
    # A signal during the step is for the next one: the other ranks have not heard of it.
    assert decide.after_step(preempt=True) == (False, True)
    decide.before_step(preempt=True, save=False)
    cluster.step_payload.unpack(cluster.step_payload.pack())
    cluster.step_payload.read()
    assert decide.after_step(preempt=True) == (True, False)
