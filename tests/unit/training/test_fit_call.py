import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from distrib.data.make_dataset import make_dataset
from distrib.training.fit_call import EvaluateCall, FitCall, call_of, fit_of, in_progress

DATASET = make_dataset(np.arange(12), batch_size=4)
ONE, OTHER = object(), object()


def fit(model: Any = ONE, steps_per_epoch: int | None = None, **arguments: Any) -> FitCall:
    call = FitCall(model, {"x": None, "validation_data": None, "epochs": 3, **arguments})
    call.iterator = SimpleNamespace(steps_per_epoch=steps_per_epoch, _current_iterator="an old one")
    return call


def test_calls_nest() -> None:
    outer, inner = fit(ONE), fit(OTHER)
    validation = EvaluateCall(ONE, DATASET, in_fit=True)
    assert call_of(ONE) is None
    with in_progress(outer):
        with in_progress(inner):
            assert (call_of(ONE), call_of(OTHER)) == (outer, inner)
        with in_progress(validation):
            assert (call_of(ONE), fit_of(ONE)) == (validation, outer)
        assert call_of(OTHER) is None
    assert call_of(ONE) is None


def test_each_thread_has_its_own() -> None:
    seen: list[Any] = []
    with in_progress(fit()):
        thread = threading.Thread(target=lambda: seen.append(call_of(ONE)))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize(
    ("data", "steps", "batches"),
    [
        (DATASET, None, 3),
        (DATASET.repeat(), 5, 5),
        (np.arange(3), None, None),
        (np.arange(3), 7, 7),
    ],
)
def test_batches_of_an_epoch(data: Any, steps: int | None, batches: int | None) -> None:
    assert fit(x=data, steps_per_epoch=steps).batches == batches


@pytest.mark.parametrize(
    ("data", "begins_anew"), [(DATASET, True), (DATASET.repeat(), False), (np.arange(3), False)]
)
def test_only_data_that_end_begin_anew(data: Any, begins_anew: bool) -> None:
    call = fit(x=data)
    call.begin_new_pass()
    assert (call.iterator._current_iterator is None) == begins_anew


def test_only_shared_validation_data_count() -> None:
    assert fit(validation_data=DATASET).validation_dataset is DATASET
    assert fit(validation_data=(DATASET,)).validation_dataset is DATASET
    assert fit(validation_data=(np.arange(3), np.arange(3))).validation_dataset is None
    assert fit().validation_dataset is None


@pytest.mark.usefixtures("_two_epochs")
@pytest.mark.parametrize(("given", "epochs"), [(1, 1), (3, 2)])
def test_keras_may_limit_the_epochs(given: int, epochs: int) -> None:
    assert fit(epochs=given).epochs == epochs


@pytest.fixture
def _two_epochs() -> Iterator[None]:
    keras.config.set_max_epochs(2)
    yield
    keras.config.set_max_epochs(None)


def test_data_are_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("distrib.data.dataset.contents_of", lambda held: read.append(held) or {})
    first, second = (make_dataset(np.arange(4), 2) for _ in range(2))
    call = FitCall(ONE, {"x": first, "validation_data": second})
    for _ in range(2):
        assert call.fingerprint_of(first) == first.description() | {"contents": {}}
        call.fingerprint_of(second).clear()
    assert len(read) == 2
