from typing import Any

import keras
import pytest

import distrib.callbacks
from distrib.state.attribute_state import AttributeState
from distrib.state.callback_state import acts_in_validation, not_resumable_base, saved_states


class Decides(keras.callbacks.Callback):
    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        pass


class Plain(keras.callbacks.Callback):
    def __init__(self, *held: Any) -> None:
        super().__init__()
        self.held = list(held)


class Validates(Plain):
    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        pass


class Stops(distrib.callbacks.EarlyStopping):
    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        self.count = 0


class Board(keras.callbacks.TensorBoard):
    pass


def names(*callbacks: Any) -> list[str]:
    return [state.name for state in saved_states(callbacks)]


def test_every_state_has_a_name_of_its_own() -> None:
    assert names(Decides(), Plain(), Decides(), Plain()) == [
        "Decides",
        "Plain attributes",
        "Decides-2",
        "Plain-2 attributes",
    ]


def test_callbacks_that_others_hold_are_found_once() -> None:
    inner, both = Decides(), Plain()
    outer = Plain(inner, keras.callbacks.CallbackList([both]), both)
    outer.itself, outer.by_name = outer, {"stop": Stops()}  # type: ignore[attr-defined]
    assert names(outer, Decides()) == [
        "Plain attributes",
        "Decides",
        "Decides-2",
        "Plain-2 attributes",
        "Stops",
        "Stops attributes",
    ]


def test_what_holds_its_state_elsewhere_is_left_out(tmp_path: Any) -> None:
    assert (
        names(
            keras.callbacks.History(),
            keras.callbacks.ProgbarLogger(),
            keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
            distrib.callbacks.BackupAndRestore(tmp_path),
        )
        == []
    )
    assert names(distrib.callbacks.EarlyStopping()) == ["EarlyStopping"]
    assert names(keras.callbacks.EarlyStopping()) == ["EarlyStopping attributes"]


@pytest.mark.parametrize("kind", [distrib.callbacks, keras.callbacks])
def test_a_lambdas_variables_are_watched_unless_it_decides(kind: Any) -> None:
    assert "LambdaCallback attributes" in names(kind.LambdaCallback())
    decides = kind.LambdaCallback(get_state=dict, set_state=print)
    assert names(decides) == ["LambdaCallback"]


def test_what_a_subclass_adds_to_one_of_ours_is_saved() -> None:
    stop = Stops()
    stop.on_train_begin()
    own, added = (state.holder for state in saved_states([stop]))
    stop.count, stop.wait = 5, 2
    assert own is stop
    assert isinstance(added, AttributeState)
    assert added.get_state() == {"changed": {"count": 5}, "not saved": []}


def test_what_a_subclass_adds_to_a_writer_of_kerass_is_saved() -> None:
    board = Board("logs")
    (added,) = (state.holder for state in saved_states([board]))
    board.count, board._global_train_batch = 5, 3
    assert added.get_state() == {"changed": {"count": 5}, "not saved": []}


@pytest.mark.parametrize(
    ("callback", "acts"),
    [
        (Decides(), False),
        (Plain(), False),
        (Validates(), True),
        (keras.callbacks.LambdaCallback(on_test_begin=lambda logs: None), True),
    ],
)
def test_hooks_that_a_validation_calls(callback: Any, acts: bool) -> None:
    assert acts_in_validation(callback) == acts


def test_what_a_callback_in_validation_holds_acts_there_too() -> None:
    states = saved_states([Validates(Plain())])
    assert [state.acts_in_validation for state in states] == [True, True]


def test_classes_of_kerass_that_cannot_be_resumed() -> None:
    assert not_resumable_base(Board("logs")) is keras.callbacks.TensorBoard
    assert not_resumable_base(distrib.callbacks.TensorBoard("logs")) is None
    assert not_resumable_base(keras.callbacks.EarlyStopping()) is None
