"""These fail when a Keras release changes what `keras_compat/output.py` relies on."""

import numpy as np
import pytest
import tensorflow as tf

from distrib.keras_compat.output import plain_logs, print_message


def test_logs_become_plain_numbers() -> None:
    logs = plain_logs({"loss": tf.constant(0.5), "f1": np.float32(0.25)})
    assert logs == {"loss": 0.5, "f1": 0.25}
    assert {type(value) for value in logs.values()} == {float}
    assert plain_logs(None) == {}


def test_messages_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    print_message("saved")
    assert capsys.readouterr().out == "saved\n"
