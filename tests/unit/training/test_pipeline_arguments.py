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
    return [*model.get_weights(), np.array(history.history["loss"])]


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
