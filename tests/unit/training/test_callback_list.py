from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from distrib.callbacks import BackupAndRestore
from distrib.errors import ConfigurationError
from distrib.training.callback_list import FitCallbackList, flat_callbacks
from distrib.training.fit_call import FitCall

ONE, TWO = keras.callbacks.Callback(), keras.callbacks.Callback()
X = np.zeros((4, 1), np.float32)


@pytest.mark.parametrize(
    ("given", "flat"),
    [
        (None, []),
        (ONE, [ONE]),
        ([ONE, [[TWO]]], [ONE, TWO]),
        ((ONE, TWO), [ONE, TWO]),
        (keras.callbacks.CallbackList([ONE, TWO]), [ONE, TWO]),
    ],
)
def test_callbacks_as_users_pass_them(given: Any, flat: list[Any]) -> None:
    assert flat_callbacks(given) == flat


def make() -> Any:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_it_becomes_what_keras_would_have_made() -> None:
    model = make()
    arguments = {"callbacks": [ONE], "verbose": 1, "epochs": 3}
    mine = FitCallbackList(FitCall(model, arguments))
    mine.open(steps=5)
    keras_list = keras.callbacks.CallbackList(
        [ONE], add_history=True, add_progbar=True, model=model, verbose=1, epochs=3, steps=5
    )
    assert [type(each) for each in mine.callbacks] == [type(each) for each in keras_list.callbacks]
    assert mine.params == keras_list.params == {"verbose": 1, "epochs": 3, "steps": 5}
    assert vars(mine).keys() >= vars(keras_list).keys()


def test_a_keras_that_announces_no_iterator_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = BackupAndRestore(tmp_path)
    monkeypatch.setattr(keras.Model, "_maybe_symbolic_build", lambda model, **how: None)
    with pytest.raises(ConfigurationError, match=f"Keras {keras.__version__} calls `fit` in a way"):
        make().fit(X, X, verbose=0, callbacks=[backup])
