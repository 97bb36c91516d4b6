"""A script as people write it: no `if __name__ == "__main__"`, and its functions are its own."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

import numpy as np

import distrib

cluster = distrib.init()
folder, mode = Path(sys.argv[1]), sys.argv[2]
rank = os.getpid()


def slow(example, rng):
    """Hold the interpreter's lock, and let the test know where."""
    x, number = example
    if os.getpid() != rank:
        (folder / f"worker-{os.getpid()}").write_text("")
        if mode == "stuck" and number > 4:
            (folder / "stuck").write_text("")
            ctypes.PyDLL(None).sleep(1000)
        if mode in ("endless", "forked"):
            time.sleep(0.01)
    return x + rng.normal(size=x.shape), number


size = 100_000 if mode in ("endless", "forked") else 40
data = np.zeros((size, 3)), np.arange(size)
workers = 0 if mode == "threads" else 2
train = cluster.dataset(data, 8, shuffle=True, seed=3, map=slow, num_workers=workers)
if mode == "forked":
    next(iter(train))
    child = os.fork()
    if child == 0:  # Outlives this process.
        (folder / f"child-{os.getpid()}").write_text("")
        time.sleep(1000)
batches = [[leaf.numpy() for leaf in batch] for batch in train]
np.savez(
    folder / f"{mode}-{cluster.rank}.npz",
    x=np.concatenate([x for x, _ in batches]),
    number=np.concatenate([number for _, number in batches]),
)
