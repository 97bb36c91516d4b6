from typing import Any

import keras
import numpy as np

from distrib.collectives import SingleProcess
from distrib.state.global_metrics import global_result


class Half(SingleProcess):
    """Two ranks; the other one's states are given."""

    def __init__(self, other: Any) -> None:
        self.other = other

    def allgather(self, value: Any) -> list[Any]:
        return [value, self.other]


class Recorder(SingleProcess):
    def allgather(self, value: Any) -> list[Any]:
        self.value = value
        return [value]


def make() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", "mse", metrics=[keras.metrics.AUC(name="auc"), "mae"])
    return model


def test_results_of_two_halves_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.integers(2, size=(50, 1)).astype("float32")
    model = make()
    whole = model.evaluate(x, y, return_dict=True, verbose=0)
    model.evaluate(x[33:], y[33:], verbose=0)
    recorder = Recorder()
    global_result(model, {}, recorder)
    logs = model.evaluate(x[:33], y[:33], return_dict=True, verbose=0)
    mine = [variable.numpy() for variable in model.metrics_variables]
    logs = {"auc": logs["auc"], "loss": logs["loss"] + 1, "other": 0.0}
    results, reported = global_result(model, logs, Half(recorder.value))
    for name, value in whole.items():
        np.testing.assert_allclose(results[name], value, rtol=1e-6)
    assert reported == ["auc"]  # What the step calls `loss` is not what the metric says.
    for variable, value in zip(model.metrics_variables, mine, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


class Extremes(keras.metrics.Metric):
    """Variables that say how they are combined."""

    def __init__(self) -> None:
        super().__init__(name="extremes")
        self.mean = self.add_variable((), "zeros", aggregation="mean")
        self.first = self.add_variable((), "zeros", aggregation="only_first_replica")

    def update_state(self, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
        pass

    def result(self) -> Any:
        return self.mean * 100 + self.first


def test_variables_are_combined_as_they_say() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    extremes = Extremes()
    model.compile("sgd", "mse", metrics=[extremes])
    model.evaluate(np.ones((2, 3)), np.ones((2, 1)), verbose=0)
    extremes.mean.assign(4.0), extremes.first.assign(7.0)
    recorder = Recorder()
    global_result(model, {}, recorder)
    extremes.mean.assign(2.0), extremes.first.assign(5.0)
    results, _ = global_result(model, {}, Half(recorder.value))
    assert float(results["extremes"]) == 305.0
