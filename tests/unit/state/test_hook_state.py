import random
from typing import Any

import keras
import numpy as np
import pytest

from distrib.errors import CheckpointMismatchError, ConfigurationError
from distrib.state import hook_state
from distrib.state.hook_state import HookState


class Shuffled(keras.utils.PyDataset):
    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.x = np.arange(12.0).reshape(6, 2)
        self.y = np.arange(6)
        self.names = [f"/data/{number}.png" for number in range(6)]
        self.indices = np.arange(6)
        self.rng, self.numpy_rng = random.Random(seed), np.random.default_rng(seed)
        self.epoch, self.opened = 0, None

    def __getitem__(self, index: int) -> Any:
        self.opened = object()
        return self.x

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self.numpy_rng.shuffle(self.indices)
        self.rng.shuffle(self.names)


def test_a_hook_goes_on_where_the_saved_one_stood() -> None:
    one, other = Shuffled(), Shuffled(seed=2)
    state, restored = HookState(one), HookState(other)
    state.call(one.on_epoch_end)
    restored.set_state(state.get_state())
    for each, hooks in ((one, state), (other, restored)):
        each[0]
        hooks.call(each.on_epoch_end)
    assert one.epoch == other.epoch == 2
    assert one.names == other.names
    np.testing.assert_array_equal(one.indices, other.indices)
    assert set(state.get_state()["changed"]) == {"epoch", "indices", "names", "rng", "numpy_rng"}


def test_what_a_hook_changes_is_a_copy() -> None:
    holder = Shuffled()
    hooks = HookState(holder)
    hooks.call(holder.on_epoch_end)
    saved = hooks.get_state()["changed"]["indices"].copy()
    holder.on_epoch_end()
    np.testing.assert_array_equal(hooks.get_state()["changed"]["indices"], saved)


@pytest.mark.parametrize("name", ["y", "names"])
def test_other_examples_or_another_order_before_the_training_are_refused(name: str) -> None:
    state = HookState(Shuffled()).get_state()
    other = Shuffled()
    setattr(other, name, getattr(other, name)[::-1])
    with pytest.raises(CheckpointMismatchError, match=f"`{name}` of Shuffled differs"):
        HookState(other).set_state(state)


def test_files_may_have_moved() -> None:
    state = HookState(Shuffled()).get_state()
    other = Shuffled()
    other.names = [name.replace("/data", "/scratch/job-7") for name in other.names]
    HookState(other).set_state(state)


def test_what_cannot_be_saved_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Opens(Shuffled):
        def on_epoch_begin(self) -> None:
            self.opened = open("/dev/null")  # noqa: SIM115

    holder = Opens()
    hooks = HookState(holder)
    for _ in range(2):
        hooks.call(holder.on_epoch_begin)
    said = capsys.readouterr().err
    assert said.count("`Opens.on_epoch_begin` changes opened, which cannot be saved") == 1


def test_a_large_array_is_not_to_be_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_state, "_MAX_BYTES", 50)

    class Whole(Shuffled):
        def on_epoch_end(self) -> None:
            np.random.shuffle(self.x)
            self.x[0] += 1

    holder = Whole()
    with pytest.raises(ConfigurationError, match=r"`Whole.on_epoch_end` changes `x`, an array"):
        HookState(holder).call(holder.on_epoch_end)
