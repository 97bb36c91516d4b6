import copy
import gc
import os
import signal
import sys
import threading

import cloudpickle
import numpy as np
import pytest

from distrib.data.workers.pickling import Pickled
from distrib.data.workers.pool import WorkerPool

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Batches:
    def __getitem__(self, index):
        if index == 8:
            raise KeyError("eight")
        if index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        rows = np.full((index * 10_000, 3), index, np.float32)
        return {"x": rows, "text": [b"a" * index]}, rows[:, 0].astype(int), None


class Task:
    def __init__(self, objects):
        self.batches = objects["batches"]

    def __call__(self, request, started):
        index, addend = request
        started(index)
        inputs, labels, nothing = self.batches[index]
        return inputs, labels + addend[:1], nothing


def test_requests_and_results_of_any_size_and_structure():
    pool = WorkerPool(Pickled({"batches": Batches()}), Task, 2, "batch")

    def result_of(index, addend):
        return pool.submit((index, addend), copy.deepcopy).result()

    # More requests at once than the workers are sent, and sizes from inline to shared memory.
    addends = [np.full(index * 30_000, index) for index in range(1, 8)]
    waiting = [pool.submit((i + 1, addend), copy.deepcopy) for i, addend in enumerate(addends)]
    for index, (inputs, labels, nothing) in enumerate((job.result() for job in waiting), 1):
        assert inputs["x"].shape == (index * 10_000, 3)
        assert (inputs["x"] == index).all()
        assert (labels == 2 * index).all()
        assert inputs["text"] == [b"a" * index]
        assert nothing is None
    with pytest.raises(RuntimeError, match=r"Traceback(.|\n)*KeyError: 'eight'"):
        result_of(8, addends[0])
    for index in (9, 1):  # Then the pool has ended, with the same reason.
        with pytest.raises(RuntimeError, match=r"of 2 .*was killed by SIGKILL at batch 9\."):
            result_of(index, addends[0])


def test_a_forked_process_can_delete_a_pool_whose_lock_was_held():
    pool = WorkerPool(Pickled({}), Task, 1)
    held, done = threading.Event(), threading.Event()

    def hold(lock):
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold, args=(pool._state.lock,))
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # Ends a process that hangs.
        del pool
        gc.collect()
        os._exit(0)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
