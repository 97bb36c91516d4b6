"""Keeps TensorFlow's start-up messages off the terminal: import it before Keras.

>>> import distrib.quiet
>>> import keras

Its import loads TensorFlow. Meanwhile, what the process writes to standard error passes through a
filter (`startup_noise.py`). That drops the messages about oneDNN and about the CPU's instructions,
and those about missing GPUs where there is none. `TF_CPP_MIN_LOG_LEVEL=0` shows all of them. Under
`distrib run` no script needs this module.
"""

from __future__ import annotations

import os
import subprocess
import sys

from distrib import startup_noise
from distrib.startup_noise import LOG_LEVEL, may_have_gpu

_STDERR = 2


def _load_tensorflow() -> None:
    import tensorflow as tf

    if not may_have_gpu():  # This looks for GPUs, and reports that there are none.
        tf.config.list_physical_devices()


def _load_quietly() -> None:
    terminal = os.dup(_STDERR)
    command = [sys.executable, "-I", startup_noise.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=terminal) as noise_filter:
        assert noise_filter.stdin is not None
        os.dup2(noise_filter.stdin.fileno(), _STDERR)
        try:
            _load_tensorflow()
        finally:
            os.dup2(terminal, _STDERR)
            os.close(terminal)


if "tensorflow" not in sys.modules and sys.stderr is not None and os.environ.get(LOG_LEVEL) != "0":
    _load_quietly()
