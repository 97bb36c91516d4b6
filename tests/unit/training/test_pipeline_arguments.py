"""Pipelines and generators in `fit`: interrupted and resumed, with the same weights as without."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.callbacks import BackupAndRestore
from distrib.errors import ConfigurationError, Preempted
from distrib.training import run_ending
from distrib.training.fit_pipelines import pipeline_in
from distrib.training.pipeline_notes import notes_on

X = np.random.default_rng(0).normal(size=(22, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


class StopAt(keras.callbacks.Callback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations) == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class StopInValidation(keras.callbacks.Callback):
    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.present = epoch

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.present == self.epoch:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(
    directory: Path, data: Callable[[], Any], *callbacks: Any, how: Any = None, **arguments: Any
) -> Any:
    run_ending._reached.clear()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    keras.utils.set_random_seed(1)
    layers = [keras.Input((3,)), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    backup = BackupAndRestore(directory, on_change="ignore", **(how or {}))
    arguments = {"epochs": 3, "verbose": 0, **arguments}
    history = model.fit(data(), callbacks=[backup, *callbacks], **arguments)
    logs = [np.array(history.history[name]) for name in sorted(history.history)]
    return [*model.get_weights(), *logs]


def shuffled() -> Any:
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(9, seed=3)
    return data.batch(4).prefetch(2)


def unknown_length() -> Any:
    return shuffled().filter(lambda x, y: True)


def generator() -> Iterator[Any]:
    for number in range(1000):
        yield X[:4] + number * np.random.normal(size=(4, 3)).astype("float32"), Y[:4]


@pytest.mark.parametrize(
    ("data", "arguments"),
    [
        pytest.param(shuffled, {}, id="tf.data"),
        pytest.param(generator, {"steps_per_epoch": 6}, id="generator"),
        pytest.param(unknown_length, {}, id="unknown length", marks=pytest.mark.exhaustive),
        pytest.param(
            lambda: shuffled().repeat(),
            {"steps_per_epoch": 5},
            id="repeat",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_resumed_at_the_very_step(
    data: Callable[[], Any], arguments: dict[str, Any], tmp_path: Path
) -> None:
    expected = fit(tmp_path / "whole", data, **arguments)
    for step in (4, 9, 12):
        with pytest.raises(Preempted):
            fit(tmp_path / "run", data, StopAt(step), **arguments)
    for one, other in zip(fit(tmp_path / "run", data, **arguments), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def over(shuffle: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return a pipeline of batches of shuffled examples."""
    return lambda: shuffle(tf.data.Dataset.from_tensor_slices((X, Y))).batch(4).prefetch(2)


VALIDATION = {
    "cut": (over(lambda data: data.shuffle(9, seed=3)), 2),
    "repeat": (lambda: shuffled().repeat().prefetch(1), 2),
    "whole": (shuffled, None),
    "unknown length": (unknown_length, 2),
    "unknown and whole": (unknown_length, None),
    "more than a pass": (lambda: shuffled().repeat(), 8),
    "all in the buffer": (over(lambda data: data.shuffle(30, seed=3)), 2),
    "in memory": (over(lambda data: data.cache().shuffle(9, seed=3)), 2),
}
ORDINARY = ["cut"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ORDINARY else [pytest.mark.exhaustive])
        for name in VALIDATION
    ],
)
def test_validation_goes_on_with_its_next_order(name: str, tmp_path: Path) -> None:
    data, steps = VALIDATION[name]

    def run(directory: Path, *callbacks: Any) -> Any:
        keras.utils.set_random_seed(1)
        arguments = {"validation_data": data(), "validation_steps": steps}
        x = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        return fit(directory, lambda: x, *callbacks, **arguments)

    expected = run(tmp_path / "whole")
    for stop in (StopInValidation(1), StopAt(7)):
        with pytest.raises(Preempted):
            run(tmp_path / "run", stop)
    for one, other in zip(run(tmp_path / "run"), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_validation_data_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Preempted):
        fit(tmp_path, shuffled, StopAt(4), validation_data=shuffled())
    with caplog.at_level("INFO", "distrib"):
        fit(tmp_path, shuffled, validation_data=shuffled().take(2))
    assert "`validation_data` is not what it was" in caplog.text


def test_validation_shuffled_twice_is_said_to_begin_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "distrib"):
        fit(tmp_path, shuffled, epochs=1, validation_data=shuffled().shuffle(2, seed=1))
    assert "`shuffle` in `validation_data` begins again after a restart" in caplog.text


def random_pipeline() -> Any:
    return shuffled().map(lambda x, y: (x + tf.random.uniform(tf.shape(x)), y))


def test_what_is_promised_is_said_before_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said(data: Callable[[], Any], **how: Any) -> str:
        caplog.clear()
        fit(tmp_path / str(len(os.listdir(tmp_path))), data, epochs=1, how=how)
        return " ".join(record.getMessage() for record in caplog.records)

    with caplog.at_level("INFO", "distrib"):
        assert "cannot hold" not in said(shuffled)
        text = said(random_pipeline)
        assert "`map` has a state of its own (RandomUniform), so a checkpoint" in text
        assert "not resumed exactly: `map` draws other random numbers" in text
        assert "saved at the end of epochs" in said(random_pipeline, resume="epoch")
    large = pipeline_in(tf.data.Dataset.range(10**9).shuffle(10**8, seed=1))
    assert large is not None
    (note,) = notes_on(large, True, "replay")
    assert "holds the elements in the buffer of `shuffle`" in note


def test_from_the_beginning_of_an_epoch(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="resume='replay'"):
        fit(tmp_path, random_pipeline, how={"resume": "epoch", "save_freq": 2})
    with pytest.raises(ConfigurationError, match="`resume='step'` must be"):
        BackupAndRestore(tmp_path, resume="step")  # type: ignore[arg-type]
    with pytest.raises(Preempted):
        fit(tmp_path, random_pipeline, StopAt(8), how={"resume": "epoch"})
    losses = fit(tmp_path, random_pipeline, how={"resume": "epoch"})[-1]
    assert len(losses) == 3
