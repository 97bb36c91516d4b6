"""Arrays that `fit` is given, in one process; several ranks are in `rank_checks.py`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tensorflow as tf

from distrib.callbacks import BackupAndRestore
from distrib.data.dataset import Dataset
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError
from distrib.keras_compat import trainer
from distrib.training import trainer_wrapper
from distrib.training.array_arguments import array_arguments

X = np.random.default_rng(0).normal(size=(21, 3))  # float64, which Keras converts
Y = (X.sum(axis=1, keepdims=True) > 0).astype("int64")
W = np.linspace(0.5, 2.0, 21)


@pytest.fixture(autouse=True)
def _wrapped() -> None:
    trainer_wrapper.install()


def make(outputs: int = 1) -> keras.Model:
    keras.utils.set_random_seed(1)
    one, two = (keras.Input((3,), name=name) for name in ("one", "two"))
    together = keras.layers.Concatenate()([one, two]) if outputs > 1 else one
    heads = [keras.layers.Dense(1, name=f"head{i}")(together) for i in range(outputs)]
    model = keras.Model([one, two] if outputs > 1 else one, heads if outputs > 1 else heads[0])
    model.compile("sgd", ["mse"] * outputs)
    return model


def arguments(**given: Any) -> Mapping[str, Any]:
    """All arguments of `fit`, as the wrapper has them."""
    return trainer.Call("fit", (None, given.pop("x", X)), {"y": Y, **given}).arguments


def dataset(**given: Any) -> Dataset:
    changes = array_arguments(make(), arguments(**given))
    found = changes["x"]
    assert isinstance(found, Dataset)
    return found


def labels(data: Any) -> list[list[int]]:
    return [batch[1].numpy().ravel().tolist() for batch in data]


def on_disk(folder: Path) -> Any:
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r")


GIVEN: dict[str, dict[str, Any]] = {
    "weights": {"sample_weight": W, "batch_size": 4},
    "class weights": {"class_weight": {0: 1.0, 1: 3.0}},
    "a split": {"validation_split": 0.3, "batch_size": 4},
    "other validation": {"validation_data": (X[:7], Y[:7], W[:7]), "validation_batch_size": 2},
    "steps": {"steps_per_epoch": 4, "validation_data": (X, Y), "validation_steps": 2},
    "lists": {"x": [X, X], "y": [Y, Y], "sample_weight": [W, None]},
    "one weight for two outputs": {"x": (X, X), "y": (Y, Y), "sample_weight": W},
    "pandas": {"x": pd.DataFrame(X), "y": pd.Series(Y[:, 0])},
    "tensors": {"x": tf.constant(X), "y": tf.constant(Y)},
    "uint8": {"x": (10 * np.abs(X)).astype("uint8")},
    "sparse, left to Keras": {"x": scipy.sparse.csr_matrix(X)},
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_history_is_keras_own_without_shuffling(name: str, tmp_path: Path) -> None:
    def fit(**more: Any) -> Any:
        given = {"x": X, "y": Y, **GIVEN[name]}
        model = make(2 if isinstance(given["x"], list | tuple) else 1)
        return model.fit(**given, shuffle=False, epochs=2, verbose=0, **more).history

    assert fit(callbacks=[BackupAndRestore(tmp_path)]) == fit()


def test_the_order_is_that_of_a_dataset_with_the_global_seed() -> None:
    expected = make_dataset((X, np.arange(21)), batch_size=5, shuffle=True, seed=1)
    assert labels(dataset(y=np.arange(21), batch_size=5)) == labels(expected)  # `make` has set 1.


def test_another_seed_is_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def order() -> Any:
        return labels(array_arguments(model, arguments(y=np.arange(21)))["x"])

    model = make()
    first = order()
    assert order() == first
    tf.random.set_seed(2)
    assert order() != first
    keras.utils.set_random_seed(1)
    assert order() == first


def test_batches_as_they_are() -> None:
    in_order = [list(range(i, i + 7)) for i in (0, 7, 14)]
    for shuffle in (False, "batch"):
        assert labels(dataset(y=np.arange(21), batch_size=7, shuffle=shuffle)) == in_order


def test_steps_of_another_length_than_the_data_go_on_with_the_next_epoch() -> None:
    changes = array_arguments(make(), arguments(batch_size=7, steps_per_epoch=2))
    assert changes["x"].endless
    assert changes["steps_per_epoch"] == 2
    changes = array_arguments(make(), arguments(steps_per_epoch=3))
    assert not changes["x"].endless
    assert changes["x"].num_batches == 3
    assert changes["steps_per_epoch"] is None


def test_a_second_fit_goes_on_with_the_next_epoch() -> None:
    model = make()
    given = arguments(y=np.arange(21), batch_size=7)
    data = array_arguments(model, given)["x"]
    epochs = [labels(data) for _ in range(3)]
    model.optimizer.iterations.assign(6)
    assert labels(array_arguments(model, given)["x"]) == epochs[2]
    later = {**given, "initial_epoch": 1}
    assert labels(array_arguments(model, later)["x"]) == epochs[1]


def test_arrays_on_disk_stay_there(tmp_path: Path) -> None:
    x = on_disk(tmp_path)
    data = dataset(x=x, shuffle=False, batch_size=7)
    (path, column), _ = data._batches.columns
    assert path == "[0]"
    assert np.shares_memory(column, x)
    batch, _ = next(iter(data))
    assert batch.dtype == tf.float32
    np.testing.assert_array_equal(batch, X[:7].astype("float32"))


def test_integers_are_not_converted() -> None:
    images = np.zeros((21, 4, 4), "uint8")
    assert dataset(x=images).element_spec[0].dtype == tf.uint8
    words = np.array(["a", "b", "c"] * 7, object)
    assert dataset(x={"words": words}).element_spec[0]["words"].dtype == tf.string


def test_other_data_are_left_alone() -> None:
    for x in (tf.data.Dataset.from_tensors((X, Y)), (each for each in [X]), None, [1, 2]):
        assert array_arguments(make(), arguments(x=x, y=None)) == {}
    ragged = tf.RaggedTensor.from_tensor(X)
    assert array_arguments(make(), arguments(x=ragged, validation_split=0.5)) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": X[:0], "y": Y[:0]}, "`x` has no examples"),
        ({"batch_size": -1}, "`batch_size=-1` must be"),
    ],
)
def test_invalid_arguments(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        dataset(**given)


def test_a_short_last_batch_is_padded_in_training_only() -> None:
    given: dict[str, Any] = {"batch_size": 4, "num_replicas": 2, "rank": 1, "size": 2}
    plain = make_dataset((X, Y), **given)
    assert (plain.every_rank_has_examples, len(plain)) == (False, 5)
    padded = make_dataset((X, Y), **given, pad_last_batch=True)
    assert (padded.every_rank_has_examples, len(padded)) == (True, 6)
    assert labels(padded)[-1] == Y[20].tolist()
    with pytest.raises(ConfigurationError, match="`batch_size=1` does not give each of 2"):
        make_dataset((X, Y), **{**given, "batch_size": 1}, pad_last_batch=True)
