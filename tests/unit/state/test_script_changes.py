from typing import Any

import pytest

from distrib.state.script_changes import changes_between

VERSIONS = {"python": "3.11.7", "keras": "3.15.1"}
RECORD = {
    "model": {"class": "Mine", "code": "aa"},
    "layers": {"dropout": {"class": "Dropout", "rate": 0.5, "seed": None}},
    "optimizer": {"Adam": {"class": "Adam", "learning_rate": 0.5, "clipnorm": None}},
    "compile": {"loss": "mse", "metrics": ["f (code 12)"]},
    "fit": {"epochs": 3, "class_weight": None},
    "callbacks": {
        "Log": {"class": "Log", "log_dir": "a", "patience": 2},
        "BackupAndRestore": {"save_freq": 3},
    },
    "replicas": 1,
    "git": {"revision": "abcdef0123456789", "modified": False},
}


def item(versions: Any = VERSIONS, **changes: Any) -> dict[str, Any]:
    """A JSON item; `layers__dropout__rate=0.2` changes one value of it."""
    record: dict[str, Any] = dict(RECORD)
    for name, value in changes.items():
        *sections, last = name.split("__")
        place = record
        for section in sections:
            place[section] = place = dict(place[section])
        place[last] = value
    return {"record": record, "versions": versions}


def lines(*items: dict[str, Any], rates: Any = ()) -> list[str]:
    return [str(change) for change in changes_between(*items, rates)]


def test_the_same_script() -> None:
    assert lines(item(), item()) == []


def test_a_checkpoint_without_a_record() -> None:
    assert lines({"versions": VERSIONS}, item()) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"layers__dropout__rate": 0.25},
            "layers.dropout.rate: checkpoint 0.5, script 0.25; the script's is used",
        ),
        (
            {"layers__dropout__seed": 3},
            "layers.dropout.seed: checkpoint None, script 3; the checkpoint's is used",
        ),
        (
            {"optimizer__Adam__learning_rate": 0.1},
            "optimizer.Adam.learning_rate: checkpoint 0.5, script 0.1; the checkpoint's is used. "
            "To set it, add LearningRateScheduler(lambda epoch: 0.1) to the callbacks, which does "
            "when an epoch begins",
        ),
        (
            {"compile__loss": "mae"},
            "compile.loss: checkpoint mse, script mae; the script's is used",
        ),
        ({"model__code": "bb"}, "model: its code has changed; the script's is used"),
        (
            {"fit__class_weight": {"0": 2.0}},
            'fit.class_weight: checkpoint None, script {"0": 2.0}; the script\'s is used',
        ),
        ({"callbacks__Log": None}, "callbacks.Log: no longer in the script"),
        ({"callbacks__New": {"class": "New"}}, "callbacks.New: new in the script"),
        ({"replicas": 2}, "replicas: 1 in the checkpoint, 2 now; rounding differs"),
        (
            {"git": {"revision": "0123456789abcdef", "modified": True}},
            "git revision: abcdef0123 in the checkpoint, 0123456789 (modified) now",
        ),
        (
            {"versions": {**VERSIONS, "keras": "3.15.2"}},
            "keras: 3.15.1 in the checkpoint, 3.15.2 now",
        ),
    ],
)
def test_a_change_in_words(changes: dict[str, Any], line: str) -> None:
    assert lines(item(), item(**changes)) == [line]


@pytest.mark.parametrize(
    "changes",
    [
        {"fit__epochs": 7},
        {"callbacks__BackupAndRestore": {"save_freq": 7}},
        {"callbacks__BackupAndRestore": None},
        {"git": None},
        {"layers": "not recorded (ValueError)"},
    ],
)
def test_what_is_no_change(changes: dict[str, Any]) -> None:
    assert lines(item(), item(**changes)) == []
    assert lines(item(**changes), item()) == []


@pytest.mark.parametrize(
    ("changes", "harmless"),
    [
        ({"callbacks__Log__log_dir": "b"}, True),
        ({"callbacks__Log__patience": 3}, False),
        ({"replicas": 2}, True),
        ({"compile__loss": "mae"}, False),
    ],
)
def test_what_is_harmless(changes: dict[str, Any], harmless: bool) -> None:
    (change,) = changes_between(item(), item(**changes))
    assert change.harmless == harmless


@pytest.mark.parametrize(
    ("saved", "here", "harmless"),
    [
        ("runs/2026-11-26T20:39:22.566", "runs/2026-11-27T08:00:01.5", True),
        ("a-20261126-203922", "a-20261127-080001", True),
        ("2026-11-26 20:39:22.566", "2026-11-27 08:00:01", True),
        ("6f1f1a5e-5a1c-4f44-9d1b-0123456789ab", "00000000-5a1c-4f44-9d1b-0123456789ab", True),
        (1732653562.5, 1732653570.25, True),
        ("a-20261126-203922", "b-20261127-080001", False),
        ("0.1", "0.2", False),
        (0.1, 1732653570.25, False),
    ],
)
def test_times_and_unique_names_are_harmless(saved: Any, here: Any, harmless: bool) -> None:
    items = item(callbacks__Log__of=saved), item(callbacks__Log__of=here)
    (change,) = changes_between(*items)
    assert change.harmless == harmless


def test_the_order_of_a_dict_is_no_change() -> None:
    items = [{"a": 1, "b": 2}], [{"b": 2, "a": 1}]
    assert lines(*(item(callbacks__Log__of=each) for each in items)) == []


def test_a_learning_rate_that_the_run_has_by_now() -> None:
    changed = item(optimizer__Adam__learning_rate=0.25)
    assert lines(item(), changed, rates=[0.25]) == []
    (line,) = lines(item(), changed, rates=[0.125])
    assert "the checkpoint's (0.125 by now) is used" in line


def test_the_arguments_of_a_schedule_are_the_scripts() -> None:
    schedules = [
        item(optimizer__Adam__learning_rate={"class": "Decay", "rate": rate}) for rate in (1, 2)
    ]
    (line,) = lines(*schedules)
    assert line.endswith("Adam.learning_rate.rate: checkpoint 1, script 2; the script's is used")


def test_another_python_has_other_bytecode() -> None:
    newer = item(
        {**VERSIONS, "python": "3.12.1"}, model__code="bb", compile__metrics=["f (code 34)"]
    )
    assert lines(item(), newer) == ["python: 3.11.7 in the checkpoint, 3.12.1 now"]


def test_another_keras_has_new_arguments() -> None:
    newer = item({**VERSIONS, "keras": "3.16.0"}, layers__dropout__new=True)
    assert lines(item(), newer) == ["keras: 3.15.1 in the checkpoint, 3.16.0 now"]
