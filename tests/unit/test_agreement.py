from typing import Any

import numpy as np
import pytest

from distrib import agreement as module
from distrib.agreement import Alone, Together, agreement
from distrib.riders import Riders


class OfTwo:
    """A cluster whose other rank wishes for something."""

    def __init__(self, other: Any) -> None:
        self.riders, self.other, self.collectives = Riders(), other, self

    def allreduce(self, value: Any, op: str) -> Any:
        assert op == "max"
        return np.maximum(value, self.other)


def test_one_process_decides_for_itself() -> None:
    decide = agreement()
    assert isinstance(decide, Alone)
    decide.before_step(leave=False, save=True)
    assert decide.after_step(leave=True) == (True, True)
    decide.before_step(leave=True, save=False)
    assert decide.after_step(leave=False) == (False, False)
    assert decide.ask(leave=False, save=True) == (False, True)


@pytest.mark.parametrize("other", [[0, 0], [1, 0], [0, 1]])
def test_between_epochs_any_rank_counts(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "current", lambda: OfTwo(other))
    assert agreement().ask(leave=False, save=False) == tuple(map(bool, other))
    assert agreement().ask(leave=True, save=True) == (True, True)


def test_in_training_only_what_came_back_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = OfTwo([0, 0])
    monkeypatch.setattr(module, "current", lambda: cluster)
    decide = Together()
    decide.before_step(leave=False, save=True)
    cluster.riders.arrive(cluster.riders.depart())
    cluster.riders.take()
    # A signal during the step is for the next one: the other ranks have not heard of it.
    assert decide.after_step(leave=True) == (False, True)
    decide.before_step(leave=True, save=False)
    cluster.riders.arrive(cluster.riders.depart())
    cluster.riders.take()
    assert decide.after_step(leave=True) == (True, False)
