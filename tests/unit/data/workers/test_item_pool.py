import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pytest

from distrib.data.workers.item_pool import ItemPool
from distrib.errors import ConfigurationError

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Batches:
    def __init__(self, secret=None):
        self.secret = secret

    def __getitem__(self, index):
        if index == 8:
            raise KeyError("eight")
        if index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        rows = np.full((index * 10_000, 3), index, np.float32)
        return {"x": rows, "text": [b"a" * index]}, rows[:, 0].astype(int), None


def test_items_of_any_size_and_structure_come_from_workers():
    pool = ItemPool(Batches(), 2)
    with ThreadPoolExecutor(4) as threads:
        items = list(threads.map(pool.get, range(8)))
    for index, (inputs, labels, nothing) in enumerate(items):
        assert inputs["x"].shape == (index * 10_000, 3)
        assert (inputs["x"] == index).all()
        assert (labels == index).all()
        assert inputs["text"] == [b"a" * index]
        assert nothing is None
    with pytest.raises(
        RuntimeError, match=r"Batches\[8\] raised KeyError: 'eight'\n(.|\n)*__getitem__"
    ):
        pool.get(8)
    for index in (9, 1):
        with pytest.raises(RuntimeError, match=r"of 2 .*was killed by SIGKILL at batch 9\."):
            pool.get(index)


def test_an_object_that_cannot_be_pickled_is_refused():
    with pytest.raises(ConfigurationError, match=r"`Batches\.secret` cannot be sent"):
        ItemPool(Batches(threading.Lock()), 1)
