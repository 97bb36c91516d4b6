import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distrib.callbacks
from distrib.data.make_dataset import make_dataset
from distrib.state.run_record import record_of, versions
from distrib.state.run_state import config_of
from distrib.state.script_changes import changes_between

X = np.zeros((8, 3), np.float32)


class Scaled(keras.layers.Layer):
    def __init__(self, factor: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor
        self.inner = keras.layers.Dense(3, activation=lambda x: x * 0.5)

    def call(self, x: Any) -> Any:
        return self.inner(x) * self.factor


class Subclass(keras.Model):
    """Has no config: Keras does not know its argument."""

    def __init__(self, first: Any, rate: float = 0.5) -> None:
        super().__init__()
        self.first, self.dropout = first, keras.layers.Dropout(rate)

    def call(self, x: Any) -> Any:
        return self.dropout(self.first(x))


def functional(rate: float = 0.5, activation: Any = "relu", skip: bool = True) -> Any:
    inputs = keras.Input((3,))
    first = keras.layers.Dense(3, activation=activation)(inputs)
    x = keras.layers.Dropout(rate)(first)
    x = keras.layers.Dense(3)(x) + (first if skip else x)
    x = keras.layers.Lambda(lambda y: y * 2.0)(x)
    x = keras.layers.Bidirectional(keras.layers.LSTM(2))(keras.layers.Reshape((3, 1))(Scaled()(x)))
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def subclass(**arguments: Any) -> Any:
    model = Subclass(keras.layers.Dense(3), **arguments)
    model(X)
    return model


def item(model: Any, callbacks: Any = (), compiled: Any = None, **arguments: Any) -> dict[str, Any]:
    """What a checkpoint would say of such a run."""
    given = {"optimizer": keras.optimizers.Adam(0.5), "loss": "mse"}
    model.compile(**given | (compiled or {}))
    model.optimizer.build(model.trainable_variables)
    record = record_of(model, config_of(model), arguments, callbacks)
    return {"record": json.loads(json.dumps(record)), "versions": versions()}


def changed(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [change.name for change in changes_between(first, second)]


@pytest.mark.parametrize("make", [functional, subclass])
def test_the_same_model_again(make: Any) -> None:
    first = item(make())
    assert not [name for name, each in first["record"].items() if "not recorded" in str(each)]
    make()  # The names of layers count on.
    assert changed(first, item(make())) == []


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"rate": 0.25}, ["layers.dropout.rate"]),
        ({"activation": "gelu"}, ["layers.dense.activation"]),
        ({"activation": lambda x: x}, ["layers.dense.activation"]),
        ({"skip": False}, ["model.connections"]),
    ],
)
def test_another_model(change: dict[str, Any], names: list[str]) -> None:
    assert changed(item(functional()), item(functional(**change))) == names


def test_a_model_without_a_config() -> None:
    model = subclass(rate=0.25)
    assert config_of(model) is None
    assert changed(item(subclass()), item(model)) == ["layers.dropout.rate"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"loss": "mae"}, ["compile.loss"]),
        ({"loss": lambda y, p: p}, ["compile.loss"]),
        ({"metrics": ["mae"]}, ["compile.metrics"]),
        ({"optimizer": keras.optimizers.Adam(0.25)}, ["optimizer.Adam.learning_rate"]),
        ({"optimizer": keras.optimizers.Adam(0.5, clipnorm=1.0)}, ["optimizer.Adam.clipnorm"]),
        ({"optimizer": keras.optimizers.Adam(0.5, beta_1=0.5)}, ["optimizer.Adam.beta_1"]),
    ],
)
def test_other_arguments_of_compile(change: dict[str, Any], names: list[str]) -> None:
    assert changed(item(functional()), item(functional(), compiled=change)) == names


def test_a_learning_rate_set_by_hand() -> None:
    first, model = item(functional()), functional()
    model.compile(keras.optimizers.Adam(0.5), "mse")
    model.optimizer.learning_rate = 0.25
    second = item(model, compiled={"optimizer": model.optimizer})
    assert changed(first, second) == ["optimizer.Adam.learning_rate"]


def test_arguments_of_fit_and_data() -> None:
    first = item(functional(), x=X, y=X, batch_size=4, class_weight={0: 1.0})
    second = item(functional(), x=X[:4], y=X, batch_size=2, class_weight={0: np.float32(2)})
    names = ["fit.batch_size", "fit.class_weight.0", "data.x.array"]
    assert changed(first, second) == names
    assert changed(first, first) == []


@pytest.mark.parametrize(
    "data", [tf.data.Dataset.from_tensor_slices(X), (X, X), {"a": X}, iter([X]), "text"]
)
def test_any_data(data: Any) -> None:
    first, second = item(functional(), x=data), item(functional(), x=data)
    assert changed(first, second) == []
    assert "not recorded" not in str(first["record"]["data"])


def shift(x: Any, by: float = 1.0) -> Any:
    return x + by


def shift_more(x: Any) -> Any:
    return shift(x, 2.0)


@tf.function
def compiled_shift(x: Any) -> Any:
    return x + 1.0


class Rows(list[Any]):
    pass


class OtherRows(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) + 1


def test_functions_that_make_the_batches() -> None:
    def change(one: Any, other: Any) -> list[str]:
        return changed(*(item(functional(), x=each) for each in (one, other)))

    plain = make_dataset(X, 2)
    assert change(plain.map(shift), plain.map(shift)) == []
    assert change(plain.map(shift), plain.map(shift_more)) == [
        "data.x.functions.Dataset.map",
        "data.x.functions.Dataset.map uses",
    ]
    assert change(plain, plain.map(shift)) == ["data.x.functions.Dataset.map"]
    name = "data.x.functions.map"
    assert change(make_dataset(X, 2, map=shift), make_dataset(X, 2, map=lambda x: x)) == [name]
    assert change(make_dataset(X, 2, map=shift), make_dataset(X, 2, map=compiled_shift)) == [name]
    rows, others = (make_dataset(kind(X), 2, map=shift) for kind in (Rows, OtherRows))
    assert change(rows, others) == [
        "data.x.functions.source.class",
        "data.x.functions.source.code",
    ]
    record = item(functional(), x=plain.map(shift))
    del record["record"]["data"]["x"]["functions"]  # As old versions left it.
    assert changed(record, item(functional(), x=plain.map(shift_more))) == []


def test_validation_data_by_what_they_hold_but_for_rounding() -> None:
    numbers = np.linspace(1, 2, 24, dtype=np.float32).reshape(8, 3)
    for kind in (lambda x: (x, x), lambda x: make_dataset(x, 2)):
        first, rounded, other = (
            item(functional(), x=X, validation_data=kind(each))
            for each in (numbers, np.nextafter(numbers, np.float32(9)), numbers[::-1].copy())
        )
        changes = changes_between(first, rounded)
        assert changes
        assert all(change.harmless and "rounded otherwise" in str(change) for change in changes)
        changes = changes_between(first, other)
        assert changes
        assert not any(change.harmless for change in changes)
        assert "other examples, or in another order; the script's are used" in str(changes[0])


def test_training_data_are_not_read() -> None:
    """The checkpoint itself says what they hold, and compares it but for rounding."""
    record = item(functional(), x=make_dataset(X, 2), y=X, sample_weight=X[:, 0])["record"]["data"]
    assert "contents" not in str(record)
    assert record["y"] == {"array": "float32 (8, 3)"}


def test_data_as_old_versions_recorded_them() -> None:
    old = item(functional(), x=X, validation_data=(X, X))
    old["record"]["data"] |= {
        "x": "float32 (8, 3) 1234abcd",
        "validation_data": ["float32 (8, 3) 1234abcd", "float32 (8, 3) 1234abcd"],
    }
    assert changed(old, item(functional(), x=X, validation_data=(X, X))) == []
    validation = make_dataset(X, 2)
    old = item(functional(), x=make_dataset(X, 2), validation_data=validation)
    old["record"]["data"] |= {"x": validation.fingerprint(), "validation_data": {}}
    assert changed(old, item(functional(), x=make_dataset(X, 2), validation_data=None)) == [
        "data.validation_data"
    ]


def test_a_dataset_by_its_fingerprint() -> None:
    datasets = [make_dataset(X, 2, seed=seed) for seed in (1, 2)]
    first, second = (item(functional(), validation_data=each) for each in datasets)
    assert changed(first, second) == ["data.validation_data.seed"]


class Mine(keras.callbacks.Callback):
    def __init__(self, rate: float, settings: Any = None, api_key: str = "") -> None:
        super().__init__()
        self.rate, self.settings, self.api_key = rate, settings, api_key


def all_callbacks(folder: Path, patience: int = 2, rate: float = 0.5) -> Iterator[Any]:
    """Each callback of ours and Keras's, as a script makes it anew in every attempt."""
    for module in (keras.callbacks, distrib.callbacks):
        yield module.EarlyStopping(patience=patience)
        yield module.ReduceLROnPlateau()
        yield module.ModelCheckpoint(folder / "best.keras")
        yield module.CSVLogger(folder / "log.csv", append=True)
        yield module.TensorBoard(folder / "tb")
        yield module.LearningRateScheduler(lambda epoch: rate * 0.5**epoch)
        yield module.LambdaCallback(on_epoch_end=lambda epoch, logs: None)
        yield module.RemoteMonitor(headers={"Authorization": "word"})
        yield module.TerminateOnNaN()
        yield module.ProgbarLogger()
        yield module.SwapEMAWeights()
    yield distrib.callbacks.LearningRateWarmup(0.5, 2)
    yield distrib.callbacks.LossHistory(folder / "plots")
    yield Mine(rate, {"mine": {"password": "word"}}, "word")


def test_the_same_callbacks_again(tmp_path: Path) -> None:
    model = functional()
    first, second = (item(model, [*all_callbacks(tmp_path)]) for _ in range(2))
    assert changed(first, second) == []
    assert len(first["record"]["callbacks"]) == 25
    assert "word" not in str(first["record"]).replace("password", "")


def test_other_arguments_of_callbacks(tmp_path: Path) -> None:
    model = functional()
    first = item(model, [*all_callbacks(tmp_path)])
    second = item(model, [*all_callbacks(tmp_path, patience=3, rate=0.25)][:-1])
    assert changed(first, second) == [
        "callbacks.EarlyStopping.patience",
        "callbacks.LearningRateScheduler.schedule",
        "callbacks.EarlyStopping-2.patience",
        "callbacks.LearningRateScheduler-2.schedule",
        "callbacks.Mine",
    ]


def test_an_object_that_cannot_be_described_costs_no_run() -> None:
    mine = Mine(0.5)
    mine.settings = [mine.rate]
    mine.settings.append(mine.settings)
    first = item(functional(), [mine])
    assert first["record"]["callbacks"] == "not recorded (RecursionError)"
    assert changed(first, item(functional(), [mine])) == []
