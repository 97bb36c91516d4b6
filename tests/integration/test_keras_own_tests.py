"""Keras's own tests of its callbacks, run against ours: the strongest proof of "drop-in".

The installed test modules are copied to a folder whose `conftest.py` replaces Keras's classes by
ours before the modules are imported, and run by a pytest of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import pytest

CALLBACKS = Path(keras.__file__).parent / "src" / "callbacks"

# Without backup_and_restore_test.py: our BackupAndRestore keeps other files and more state than
# Keras's.
MODULES = [
    "callback_test.py",
    "csv_logger_test.py",
    "early_stopping_test.py",
    "lambda_callback_test.py",
    "learning_rate_scheduler_test.py",
    "model_checkpoint_test.py",
    "monitor_callback_test.py",
    "orbax_checkpoint_test.py",
    "reduce_lr_on_plateau_test.py",
    "remote_monitor_test.py",
    "swap_ema_weights_test.py",
    "tensorboard_test.py",
    "terminate_on_nan_test.py",
]

CONFTEST = """
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras.src.callbacks
import keras.src.callbacks.callback_list
import pytest

import distrib.callbacks

for name in distrib.callbacks.__all__:
    if name != "BackupAndRestore" and hasattr(keras.src.callbacks, name):
        setattr(keras.src.callbacks, name, getattr(distrib.callbacks, name))
keras.src.callbacks.callback_list.ProgbarLogger = distrib.callbacks.ProgbarLogger
# Its test imports it from its module, which an older Keras does not have.
if "OrbaxCheckpoint" in distrib.callbacks.__all__:
    keras.src.callbacks.orbax_checkpoint.OrbaxCheckpoint = distrib.callbacks.OrbaxCheckpoint


def skip_if_backend(given, reason):
    return pytest.mark.skipif(given == "tensorflow", reason=reason)


def pytest_configure(config):
    config.addinivalue_line("markers", "requires_trainable_backend: Keras's")
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_keras_tests_pass_with_our_callbacks(tmp_path: Path) -> None:
    if not CALLBACKS.joinpath(MODULES[0]).exists():
        pytest.skip("this Keras is installed without its tests")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for module in MODULES:
        if module == "orbax_checkpoint_test.py" and not hasattr(keras.callbacks, "OrbaxCheckpoint"):
            continue
        shutil.copy(CALLBACKS / module, tmp_path / module)
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", "."]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout[-8000:], result.stderr[-4000:])
    assert result.returncode == 0
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= 60
