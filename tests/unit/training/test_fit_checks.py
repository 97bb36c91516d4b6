import warnings
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib import callbacks
from distrib.data.make_dataset import make_dataset
from distrib.data.order import Shard
from distrib.data.py_dataset import PyDatasetBatches
from distrib.data.py_dataset_order import EvaluationOrder
from distrib.errors import ConfigurationError
from distrib.save_policy.schedule import SaveSchedule
from distrib.training import fit_checks
from distrib.training.fit_call import FitCall
from distrib.training.fit_checks import (
    check_call,
    warn_about_mixed_parts,
    warn_about_unsaved_callbacks,
)

DATASET = make_dataset(np.arange(12), batch_size=4)
STEPS, EPOCHS = SaveSchedule(steps=5), SaveSchedule(epochs=True)


def call(data: Any, steps_per_epoch: int | None = None) -> FitCall:
    made = FitCall(keras.Model(), {"x": data})
    made.iterator = SimpleNamespace(steps_per_epoch=steps_per_epoch)
    return made


@pytest.mark.parametrize(
    ("data", "steps", "schedule"),
    [
        (DATASET, None, STEPS),
        (DATASET, 3, STEPS),
        (DATASET.repeat(), 5, STEPS),
        (np.arange(12), None, EPOCHS),
        (np.arange(12), 2, EPOCHS),
    ],
)
def test_what_can_be_resumed_is_taken(data: Any, steps: int | None, schedule: SaveSchedule) -> None:
    check_call(call(data, steps), schedule)


@pytest.mark.parametrize("schedule", [STEPS, SaveSchedule(seconds=60.0), SaveSchedule(auto=True)])
def test_other_data_cannot_be_saved_within_an_epoch(schedule: SaveSchedule) -> None:
    with pytest.raises(ConfigurationError, match=r"was given ndarray.*save_freq='epoch'"):
        check_call(call(np.arange(12)), schedule)


def test_an_endless_dataset_needs_an_end_of_the_epoch() -> None:
    with pytest.raises(ConfigurationError, match="pass `steps_per_epoch`"):
        check_call(call(DATASET.repeat()), STEPS)


def test_an_epoch_of_another_length_needs_an_endless_dataset() -> None:
    with pytest.raises(ConfigurationError, match=r"`steps_per_epoch=2` differs .* 3 batches"):
        check_call(call(DATASET, 2), STEPS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATASET.filter(lambda x: True), r"`filter`.*Do it to the examples, before `cluster"),
        (DATASET.unbatch().batch(2), r"`unbatch`.*Pass the `batch_size`"),
        (DATASET.shuffle(3).prefetch(1), r"`shuffle`.*Pass `shuffle=True`"),
        (DATASET.repeat().take(3), r"`take`.*Call it before `repeat\(\)`"),
        (tf.data.Dataset.zip((DATASET, DATASET)), r"`zip`.*Write `a.zip\(b\)`"),
        (DATASET.concatenate(tf.data.Dataset.range(3).batch(2)), r"Write `a.concatenate\(b\)`"),
    ],
)
def test_data_that_lost_their_position_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`x` was made .*{message}"):
        check_call(call(data), EPOCHS)
    validated = FitCall(keras.Model(), {"x": DATASET, "validation_data": (data, None)})
    with pytest.raises(ConfigurationError, match="`validation_data` was made from"):
        check_call(validated, EPOCHS)


SHUFFLED = make_dataset(np.arange(12), batch_size=4, shuffle=True)


class OwnBatches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return np.arange(4)


PY_DATASET = PyDatasetBatches(OwnBatches(), EvaluationOrder(3, Shard()))


@pytest.mark.parametrize(
    ("train", "validation", "warned"),
    [
        (SHUFFLED.skip(1), SHUFFLED.take(1), True),
        (SHUFFLED.map(lambda x: x).skip(1), SHUFFLED.take(1).zip(DATASET), True),
        (SHUFFLED, SHUFFLED.take(1), False),
        (DATASET.skip(1), DATASET.take(1), False),
        (SHUFFLED.skip(1), DATASET.take(1), False),
        (np.arange(12), None, False),
        (SHUFFLED, PY_DATASET, False),
        (PY_DATASET, SHUFFLED, False),
    ],
)
def test_parts_that_exchange_examples(train: Any, validation: Any, warned: bool) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_about_mixed_parts(FitCall(keras.Model(), {"x": train, "validation_data": validation}))
    assert ["each epoch divides its examples anew" in str(each.message) for each in said] == (
        [True] * warned
    )


class Board(keras.callbacks.TensorBoard):
    pass


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            keras.callbacks.TensorBoard("logs"),
            r"keras\.callbacks\.TensorBoard forgets its state.* import TensorBoard from distrib",
        ),
        (Board("logs"), r"Board forgets .* derive it from distrib\.callbacks\.TensorBoard"),
    ],
)
def test_what_cannot_be_resumed_is_named(callback: Any, message: str) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        warn_about_unsaved_callbacks([callback, keras.callbacks.TerminateOnNaN()])
    assert len(caught) == 1


def test_what_can_be_resumed_is_not_named_nor_anything_on_other_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Yours(keras.callbacks.EarlyStopping):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_unsaved_callbacks([callbacks.EarlyStopping(), Yours()])
        monkeypatch.setattr(fit_checks, "current", lambda: SimpleNamespace(is_chief=False))
        warn_about_unsaved_callbacks([Board("logs")])
