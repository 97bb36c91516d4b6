import threading
from typing import Any

import keras
import numpy as np
import pytest

from distrib.state import host_copies
from distrib.state.host_copies import HostBuffers
from distrib.state.training_state import TrainingState


def test_large_variables_are_copied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copy waits until the others have begun, too."""
    together = threading.Barrier(3, timeout=20)

    class Together(HostBuffers):
        def copy(self, group: str, name: str, value: Any) -> Any:
            if value.nbytes > 2000:
                together.wait()
            return super().copy(group, name, value)

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(300), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    # Of 4 x 300 are a weight, and two slots of the optimizer.
    model.fit(np.ones((8, 4), "float32"), np.ones((8, 1), "float32"), verbose=0)
    state = TrainingState(model)
    expected = state.snapshot(HostBuffers())
    monkeypatch.setattr(host_copies, "_GROUP_BYTES", 1000)
    copies = state.snapshot(Together())
    assert copies.keys() == expected.keys()
    for group, members in expected.items():
        assert list(copies[group]) == list(members)
        for name, value in members.items():
            np.testing.assert_array_equal(copies[group][name], value, err_msg=name)
