import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import distrib
from distrib.backends.horovod_keras import explain, refuse_horovods
from distrib.errors import ConfigurationError

CODE = """
def broadcast_variables(variables): return variables.assign(1)
def run(function): return function()
"""


@pytest.fixture
def functions(tmp_path: Path) -> Any:
    """Functions in a file that is where Horovod's would be."""
    file = tmp_path / "site-packages" / "horovod" / "functions.py"
    module: dict[str, Any] = {}
    exec(compile(CODE, str(file), "exec"), module)
    return SimpleNamespace(**module)


def small_model(optimizer: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def refused(message: str, train: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        train()


def raised(function: Any, *arguments: Any) -> BaseException:
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


def test_the_optimizer_is_refused_wherever_it_is_passed() -> None:
    hvd = pytest.importorskip("horovod.tensorflow.keras", reason="Horovod is not installed")
    cluster, x = distrib.init(), np.ones((2, 1))
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    scaled = keras.optimizers.LossScaleOptimizer(optimizer)
    message = "write `cluster.optimizer(keras.optimizers.SGD(...))`"
    refused(message, lambda: cluster.optimizer(optimizer))
    refused(message, lambda: cluster.optimizer(scaled))
    refused(message, lambda: small_model(optimizer).fit(x, x, verbose=0))
    refused(message, lambda: small_model(scaled).fit(x, x, verbose=0))


@pytest.mark.parametrize("package", ["horovod.tensorflow.keras", "horovod.keras"])
def test_callbacks_and_what_takes_their_place(package: str) -> None:
    hvd = pytest.importorskip(package, reason="Horovod is not installed")
    distrib.init()
    first = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    other = type("Own", (hvd.callbacks.MetricAverageCallback,), {})()
    x = np.ones((2, 1))
    refused(
        "`BroadcastGlobalVariablesCallback`: delete it: `fit` begins with the chief's weights; "
        "`MetricAverageCallback`: delete it",
        lambda: small_model("sgd").fit(x, x, verbose=0, callbacks=[[first], other]),
    )
    refuse_horovods([keras.optimizers.SGD()], [keras.callbacks.Callback()])


def test_errors_of_horovods_functions_are_explained(functions: Any) -> None:
    assert "delete the call" in str(explain(raised(functions.broadcast_variables, [1])))
    hvd, names = functions, [1]
    error = raised(lambda: hvd.broadcast_variables(names()))  # type: ignore[operator]
    assert "'list' object is not callable" in str(error)
    assert "delete the call" in str(explain(error))


def test_errors_of_the_users_code_stay_what_they_are(functions: Any) -> None:
    own = raised(functions.run, lambda: [].assign)
    for error in (own, raised(int, "x"), KeyError("hvd"), RuntimeError("out of memory")):
        assert explain(error) is error


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ValueError("Horovod has not been initialized; use hvd.init()."), "`hvd.shutdown()`"),
        (RuntimeError("Visible devices cannot be modified after being initialized"), "its GPU"),
    ],
)
def test_other_leftovers(error: Exception, advice: str) -> None:
    assert advice in str(explain(error))


SCRIPT = """
import distrib
distrib.init("local")
hvd = type("hvd", (), {"broadcast_variables": print})
variables = []
hvd.broadcast_variables(variables())
"""


def test_a_script_ends_with_the_traceback_and_what_to_delete(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 78
    assert "'list' object is not callable\n\ndistrib: Horovod's functions for" in done.stderr
