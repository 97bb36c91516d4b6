"""With a class that is not Keras's, whose workers would import it."""

import os
import signal
import sys
import threading
from typing import Any

import cloudpickle
import numpy as np
import pytest

from distrib.data.py_dataset_pool import BatchPool
from distrib.errors import ConfigurationError

# pytest imports this module in its own way, which workers cannot repeat.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Batches:
    def __init__(self, **attributes: Any) -> None:
        self.factor = 1
        vars(self).update(attributes)

    def __getitem__(self, index: int) -> Any:
        if index == 9:
            raise KeyError("no such picture")
        if index == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": np.full(3, index * self.factor)}, [os.getpid(), None]


def test_batches_come_from_another_process_which_learns_what_has_changed() -> None:
    pool = BatchPool(Batches(), 1)
    first, (process, nothing) = pool.build(2)
    assert process != os.getpid()
    assert nothing is None
    pool.update({"factor": 10})
    later, _ = pool.build(2)
    assert [first["x"].tolist(), later["x"].tolist()] == [[2] * 3, [20] * 3]  # Not overwritten.
    with pytest.raises(RuntimeError, match="This was batch 9 of Batches") as raised:
        pool.build(9)
    assert "in __getitem__" in str(raised.value)
    assert "KeyError: 'no such picture'" in str(raised.value)
    with pytest.raises(RuntimeError, match="killed by SIGKILL at batch 13"):
        pool.build(13)


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"Batches has `use_multiprocessing=True`, but"):
        BatchPool(Batches(lock=threading.Lock()), 1)
