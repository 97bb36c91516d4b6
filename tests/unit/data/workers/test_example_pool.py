"""What a dataset with `num_workers` yields, and says; the processes are real."""

import functools
import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import tensorflow as tf

from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError

N = 21
# pytest imports this module in its own way, which workers cannot repeat.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def children():
    """Return the ids of the worker processes of this process."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            command = (process / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        if parent == str(os.getpid()) and "workers/program.py" in command:
            found.append(int(process.name))
    return found


def wait_until(condition):
    while not condition():
        time.sleep(0.01)


def equal(a, b):
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        tf.nest.assert_same_structure(one, other)
        for x, y in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
            assert x.dtype == y.dtype
            assert x.numpy().tolist() == y.numpy().tolist()
    return True


class Items:
    """Examples of every kind of leaf; opens what cannot be pickled at its first use."""

    def __init__(self):
        self.lock = None

    def __len__(self):
        return N

    def __getitem__(self, index):
        assert type(index) is int
        self.lock = self.lock or threading.Lock()
        return {
            "i": index,
            "s": "é" * index,
            "z": b"\0" * index,
            "l": [0.5, index],
            "w": os.getpid(),
        }


def augment(item, rng):
    noise = rng.normal(size=(64, 64)).astype(np.float32)
    return {"text": item["s"], "noise": noise, "rest": (item["i"], item["z"], item["l"])}


@pytest.mark.parametrize("shuffle", ["blocks", pytest.param(True, marks=pytest.mark.exhaustive)])
def test_the_same_bits_as_without_workers(shuffle):
    def passes(num_workers, **kwargs):
        dataset = make_dataset(
            Items(), 4, shuffle, 3, map=augment, num_workers=num_workers, **kwargs
        )
        first = list(dataset)
        dataset.seek(1, 2)
        return first + list(dataset)

    assert equal(passes(2), passes(0))
    assert equal(passes(2, rank=1, size=3), passes(0, rank=1, size=3))


def test_workers_import_neither_the_script_nor_tensorflow_and_are_no_ranks(monkeypatch):
    monkeypatch.setenv("HOROVOD_RANK", "1")
    monkeypatch.setenv("DISTRIB_HEARTBEAT", "5:6")
    loaded = "tensorflow"

    def look(_):
        import __main__

        return {
            "tensorflow": loaded in sys.modules,
            "main": getattr(__main__, "__file__", ""),
            "path": repr(sys.path),
            "cwd": os.getcwd(),
            "environment": repr(sorted(os.environ)),
            "gpus": os.environ["CUDA_VISIBLE_DEVICES"] if os.getpid() != parent else "",
            "pid": os.getpid(),
        }

    parent = os.getpid()
    (batch,) = make_dataset(list(range(64)), 64, map=look, num_workers=2)
    seen = {key: set(values.numpy().tolist()) for key, values in batch.items()}
    assert seen["pid"] == {*seen["pid"]} - {parent}
    assert len(seen["pid"]) == 2
    assert seen["tensorflow"] == {False}
    assert seen["main"].pop().endswith(b"workers/program.py")
    assert seen["path"] == {repr(sys.path).encode()}
    assert seen["cwd"] == {os.getcwd().encode()}
    assert b"HOROVOD" not in seen["environment"].pop()
    assert seen["gpus"] == {b""}


def test_arrays_are_shared_by_the_workers_and_not_written_back(tmp_path):
    x = np.ones((N, 1000), np.float32)
    stored = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", np.int64, (N, 3))
    stored[:] = np.arange(3 * N).reshape(N, 3)
    y = np.load(tmp_path / "y.npy", mmap_mode="r")[:, 1:]

    def scale(example):
        row, label = example
        row *= 2
        mapped = Path("/proc/self/maps").read_text()
        return row, label, "memfd:distrib-data" in mapped, str(tmp_path) in mapped

    batches = list(make_dataset((x, y), 8, map=scale, num_workers=2))
    row, label, in_memfd, on_disk = (
        np.concatenate(column) for column in zip(*batches, strict=True)
    )
    assert (row == 2).all()
    assert label.tolist() == y.tolist()
    assert in_memfd.all()
    assert on_disk.all()
    assert (x[1:] == 1).all()


def test_one_pool_for_all_passes_ends_with_the_dataset():
    before = set(children())
    dataset = make_dataset((np.arange(N),), 4, map=lambda row: row, num_workers=2)
    assert not set(children()) - before
    list(dataset)
    pids = set(children()) - before
    assert len(pids) == 2
    shorter = dataset.map(lambda row: row)
    list(shorter)
    del dataset
    gc.collect()
    list(shorter)
    assert pids <= set(children())
    iterator = iter(shorter)
    next(iterator)
    del shorter
    gc.collect()
    assert len(list(iterator)) == N // 4
    del iterator
    wait_until(lambda: gc.collect() is not None and not pids & set(children()))


@pytest.mark.parametrize(
    "how", ["SIGKILL", "SIGSEGV", pytest.param("exit code 3", marks=pytest.mark.exhaustive)]
)
def test_a_worker_that_dies_is_named_with_its_example(how):
    parent = os.getpid()

    def die(i):
        if i == 17 and os.getpid() != parent:
            if how == "exit code 3":
                sys.exit(3)
            os.kill(os.getpid(), getattr(signal, how))
        return i

    dataset = make_dataset(list(range(N)), 7, map=die, num_workers=2)
    before = set(children())
    for _ in range(2):
        with pytest.raises(
            tf.errors.OpError, match=r"Data worker \d of 2 .*at example 17.*"
        ) as error:
            list(dataset)
        assert how in str(error.value)
    wait_until(lambda: not set(children()) - before)


def test_errors_have_the_traceback_and_the_number_of_the_example():
    def fail(i):
        if i == 13:
            raise_it(i)
        return i

    def raise_it(i):
        raise StopIteration(f"no {i}")

    dataset = make_dataset(list(range(N)), 7, map=fail, num_workers=2)
    with pytest.raises(tf.errors.OpError, match="Example 13 could not be read") as error:
        list(dataset)
    assert "StopIteration: no 13" in str(error.value)
    assert "in raise_it" in str(error.value)
    ragged = make_dataset(list(range(1, N)), 7, map=lambda i: np.ones(i % 13), num_workers=2)
    with pytest.raises(tf.errors.OpError, match=r"Example 1 has shape \(2,\), but example 0"):
        list(ragged)
    assert len(list(dataset.take(1))) == 1  # The workers live on.


def test_signals_that_stop_a_job_do_not_stop_workers():
    parent = os.getpid()

    def signalled(i):
        if os.getpid() != parent:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                os.kill(os.getpid(), number)
        return i

    (batch,) = make_dataset(list(range(N)), N, map=signalled, num_workers=1)
    assert batch.numpy().tolist() == list(range(N))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": -1}, "num_workers=-1"),
        ({"map": tf.function(lambda i: i)}, "`map` is a tf.function.*leave `num_workers` out"),
        ({"num_parallel_reads": 4}, "`num_parallel_reads=4`.*leave one of them out"),
        ({"source": np.arange(3)}, "num_workers=2.*without `map` no Python code runs"),
        ({"source": tf.data.Dataset.range(3)}, "num_workers=2.*does its own reading"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    arguments = {"source": [1, 2, 3], "num_workers": 2, **arguments}
    if isinstance(arguments["source"], list):
        arguments.setdefault("map", abs)
    with pytest.raises(ConfigurationError, match=message):
        make_dataset(batch_size=2, **arguments)


lock = threading.Lock()


class Client:
    def __init__(self):
        self.connections = {"a": [threading.Lock()]}

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index

    def load(self, index):
        return index


@pytest.mark.parametrize(
    ("source", "function", "path"),
    [
        (Client(), None, r"source\.connections\['a'\]\[0\]"),
        ([1, 2], Client().load, r"map\.__self__\.connections\['a'\]\[0\]"),
        ([1, 2], lambda i: (lock, i)[1], "lock in map"),
        ([1, 2], functools.partial(lambda lock, i: i, threading.Lock()), r"map"),
    ],
)
def test_what_cannot_be_pickled_is_named(source, function, path):
    with pytest.raises(ConfigurationError, match=f"`{path}.*cannot pickle '_thread.lock'"):
        make_dataset(source, 2, map=function, num_workers=2)
