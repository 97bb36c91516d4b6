"""A `fit` in a session that goes on after it: a prompt, or a notebook's kernel."""

import subprocess
import sys
from pathlib import Path

import pytest
from harness import environment

pytestmark = pytest.mark.slow

SESSION = """
import os, signal, threading
import numpy as np, keras
from distrib.callbacks import BackupAndRestore
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
def fit(callback, epochs=2):
    x = np.ones((8, 3), "float32")
    backup = BackupAndRestore({folder!r})
    model.fit(x, x[:, :1], batch_size=2, epochs=epochs, verbose=0, callbacks=[callback, backup])

def held():
    lock = os.path.join({folder!r}, "checkpoints", ".lock")
    files = [os.path.realpath(f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd")]
    return lock in files, [t.name for t in threading.enumerate() if "distrib" in t.name]

handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: 1 / 0)
fit(callback)
print("failed", held())
interrupt = lambda batch, logs: os.kill(os.getpid(), signal.SIGINT)
fit(keras.callbacks.LambdaCallback(on_train_batch_end=interrupt))
print("interrupted", held())
signal.raise_signal(signal.SIGINT)
print("same handlers", handlers == [signal.getsignal(n) for n in (2, 15, 10)])
fit(keras.callbacks.Callback())
print("finished", held())
"""


def test_a_session_goes_on_after_a_fit_that_failed_or_was_interrupted(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-i"],
        input=SESSION.format(folder=str(tmp_path / "run")),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert done.stdout.splitlines() == [
        "failed (False, [])",
        "interrupted (False, [])",
        "same handlers True",
        "finished (False, [])",
    ], done.stderr[-4000:]
    assert "ZeroDivisionError" in done.stderr
    assert done.stderr.count("\nKeyboardInterrupt\n") == 2
