"""This fails when a Keras release changes what `keras_compat/logs.py` relies on."""

import numpy as np
import tensorflow as tf

from distrib.keras_compat.logs import plain_logs


def test_logs_become_plain_numbers() -> None:
    logs = plain_logs({"loss": tf.constant(0.5), "f1": np.float32(0.25)})
    assert logs == {"loss": 0.5, "f1": 0.25}
    assert {type(value) for value in logs.values()} == {float}
    assert plain_logs(None) == {}
