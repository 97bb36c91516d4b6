from typing import Any

import keras
import pytest

from distrib.state.callback_state import acts_in_validation, stateful_callbacks


class Counter(keras.callbacks.Callback):
    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        pass


class Plain(keras.callbacks.Callback):
    pass


class Validates(Plain):
    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        pass


def test_callbacks_with_state_have_names_of_their_own() -> None:
    first, second = Counter(), Counter()
    named = list(stateful_callbacks([first, Plain(), second]))
    assert named == [("Counter", first), ("Counter-2", second)]


@pytest.mark.parametrize(("kind", "acts"), [(Counter, False), (Plain, False), (Validates, True)])
def test_hooks_that_a_validation_calls(kind: type, acts: bool) -> None:
    assert acts_in_validation(kind()) == acts
