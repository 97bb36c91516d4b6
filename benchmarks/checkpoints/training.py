"""Trains a workload with one contender and measures what its saves cost."""

from __future__ import annotations

import re
import time
from pathlib import Path
from statistics import median
from typing import Any

import keras
import numpy as np

from common.measuring import seconds_of

from .contenders import CONTENDERS, SaveMethod
from .workload import Workload, variables

COMMIT_TIMEOUT = 120  # Seconds.


class Stopwatch(keras.callbacks.Callback):
    """Times steps and the pauses between them.

    It is the first callback of the list: the work of the others at the end of a step falls between
    that step's end and the next step's begin.
    """

    def __init__(self, workload: Workload, method: SaveMethod, folder: Path) -> None:
        super().__init__()
        self._workload, self._method, self._folder = workload, method, folder
        self._step_begins: list[float] = []
        self._step_ends: list[float] = []
        self._captured_steps: list[int] = []

    def get_state(self) -> dict[str, Any]:
        """Record the step of a save: distrib, which may save late, calls this at each save."""
        self._captured_steps.append(len(self._step_ends))
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("This benchmark does not resume a run.")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._step_begins.append(time.time())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        np.asarray(logs["loss"])  # Wait for a GPU to finish the step.
        self._step_ends.append(time.time())
        if len(self._step_ends) == self._workload.steps:
            self.results = self._evaluate()

    def _evaluate(self) -> dict[str, Any]:
        workload, ends = self._workload, self._step_ends
        expected = [workload.save_freq * (number + 1) for number in range(workload.saves)]
        saved = self._captured_steps[1:] or expected  # distrib also saves before the first step.
        committed = self._wait_for_commit(saved[-1])
        wall = time.time() - ends[workload.warmup_steps - 1]
        pauses = np.subtract(self._step_begins[1:], ends[:-1])
        steps = np.subtract(ends, self._step_begins)
        before_saves = slice(workload.warmup_steps, workload.save_freq - 1)
        pause, step = np.median(pauses[before_saves]), np.median(steps[before_saves])
        return {
            "step": step,
            "saves": len(saved),
            "skipped": workload.saves - len(saved),
            "pause": [pauses[at - 1] - pause for at in saved],
            "next step": [steps[at] - step for at in saved],
            "commit": committed - ends[saved[-1] - 1],
            "wall": wall,
            "peak": peak_memory(),
        }

    def _wait_for_commit(self, step: int) -> float:
        """Wait for the save of `step`, the last one, and return the time of its commit."""
        if self._method.wait is not None:
            self._method.wait()
        if not self._method.committed:
            return self._step_begins[step]
        path = self._folder / self._method.committed.format(step)
        deadline = time.monotonic() + COMMIT_TIMEOUT
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} did not appear within {COMMIT_TIMEOUT} s.")
            time.sleep(0.002)
        return path.stat().st_ctime


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024


def train(workload: Workload, contender: str, folder: str) -> dict[str, Any]:
    """Return the stopwatch's results, the bytes of state, and the seconds of copying them."""
    model = workload.model()
    path = Path(folder)
    path.mkdir()
    method = CONTENDERS[contender](path, model, workload)
    watch = Stopwatch(workload, method, path)
    callbacks = [watch, *method.callbacks]
    model.fit(workload.data(workload.steps), verbose=0, callbacks=callbacks)
    arrays = [np.asarray(variable) for variable in variables(model)]
    targets = [np.ones_like(array) for array in arrays]

    def memcpy() -> None:
        for target, array in zip(targets, arrays, strict=True):
            np.copyto(target, array)

    size = sum(array.nbytes for array in arrays)
    return {**watch.results, "state": size, "memcpy": median(seconds_of(memcpy) for _ in range(7))}
