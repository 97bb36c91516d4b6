"""`WorkerPool`: worker processes that compute a task for many requests.

One thread for each worker takes requests from a common queue, so that a slow one delays no other,
and keeps one more request at its worker than that works on. A worker that dies ends the pool: which
request it would have computed is known, and another worker may die of the same one.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import cloudpickle

from distrib.data.workers.pickling import Pickled
from distrib.data.workers.process import WorkerDiedError, WorkerProcess

_AHEAD = 2
# Seconds that the interpreter waits at its exit for workers to end.
_EXIT_SECONDS = 5.0


class Task(Protocol):
    """What a worker computes for a request."""

    def __call__(self, request: Any, started: Callable[[int], None]) -> Any:
        """Return nested tuples, lists and dicts of NumPy arrays, bytes and numbers.

        Args:
            request: What `WorkerPool.submit` was passed.
            started: To be called with the index of each example, before it is computed. If the
                worker dies, the message names this index.

        Raises:
            RuntimeError: With a message for the user. Of other errors the user sees the traceback.
        """


@dataclass(frozen=True)
class _Job:
    request: Any
    receive: Callable[[Any], Any]
    result: Future[Any]


@dataclass
class _State:
    """What the threads share; they do not hold the pool, so that it can be garbage-collected."""

    objects: Pickled
    jobs: SimpleQueue[_Job | None] = field(default_factory=SimpleQueue)
    # Reentrant, because the pool may be garbage-collected wherever this lock is held.
    lock: Any = field(default_factory=threading.RLock)
    workers: list[WorkerProcess] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    ended: str = ""

    def end(self, why: str) -> None:
        """Accept no more jobs, and let all workers end; only the first reason counts."""
        with self.lock:
            if self.ended:
                return
            self.ended = why
            for worker in self.workers:
                worker.hang_up()
        while True:
            try:
                job = self.jobs.get_nowait()
            except Empty:
                break
            if job is not None:
                job.result.set_exception(RuntimeError(why))
        for _ in self.threads:
            self.jobs.put(None)
        self.objects.close()


class WorkerPool:
    """Worker processes that compute a task for many requests.

    They start with the first request, and end when the pool is garbage-collected, or this process
    ends, in whichever way.

    Args:
        objects: The user's objects, which all workers load.
        task: Makes the task of a worker from these objects; small, and can be pickled.
        num_workers: Number of processes.
        unit: What `started` counts, for error messages. Defaults to `"example"`.
    """

    def __init__(
        self,
        objects: Pickled,
        task: Callable[[Mapping[str, Any]], Task],
        num_workers: int,
        unit: str = "example",
    ) -> None:
        self._num_workers = num_workers
        self._unit = unit
        self._task = cloudpickle.dumps(task)
        self._state = _State(objects)
        self._process = os.getpid()
        _pools.add(self)
        weakref.finalize(self, self._state.end, "The dataset was deleted.").atexit = False

    def submit(self, request: Any, receive: Callable[[Any], Any]) -> Future[Any]:
        """Let a worker compute a request.

        Args:
            request: What `pickle` can take, with arrays in shared memory if they are large.
            receive: Is passed the result, in another thread, and must copy what it keeps of it.

        Returns:
            What `receive` returns. Raises `RuntimeError` if the task failed or its worker died.

        Raises:
            RuntimeError: If a worker has died before, or in a process that was forked from the one
                that made the pool.
        """
        if os.getpid() != self._process:
            raise RuntimeError("A dataset with `num_workers` cannot be read in a forked process.")
        job = _Job(request, receive, Future())
        state = self._state
        with state.lock:
            if state.ended:
                raise RuntimeError(state.ended)
            if not state.threads:
                state.threads = [
                    threading.Thread(
                        target=_run_worker,
                        args=(
                            state,
                            self._task,
                            f"Data worker {number + 1} of {self._num_workers}",
                            self._unit,
                        ),
                        name="distrib-data-worker",
                        daemon=True,
                    )
                    for number in range(self._num_workers)
                ]
                for thread in state.threads:
                    thread.start()
            state.jobs.put(job)
        return job.result


def _run_worker(state: _State, task: bytes, name: str, unit: str) -> None:
    waiting: deque[_Job] = deque()
    try:
        with state.lock:
            if state.ended:
                return
            worker = WorkerProcess(state.objects, task, name, unit)
            state.workers.append(worker)
    except Exception as error:
        state.end(f"{name} could not be started: {type(error).__name__}: {error}")
        return
    try:
        while True:
            while len(waiting) < _AHEAD:
                try:
                    job = state.jobs.get(block=not waiting)
                except Empty:
                    break
                if job is None:
                    return
                waiting.append(job)
                worker.send(job.request)
            _finish(waiting[0], worker)
            waiting.popleft()
            job = None  # Holds the request, and what `receive` fills.
    except BaseException as error:
        state.end(str(error) if isinstance(error, WorkerDiedError) else repr(error))
    finally:
        for job in waiting:
            job.result.set_exception(RuntimeError(state.ended))
        worker.end()


def _finish(job: _Job, worker: WorkerProcess) -> None:
    try:
        result = job.receive(worker.receive())
    except WorkerDiedError:
        raise
    except Exception as error:
        job.result.set_exception(error)
    else:
        job.result.set_result(result)


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _end_all() -> None:
    pools = list(_pools)
    for pool in pools:
        pool._state.end("The process ends.")
    for pool in pools:
        for thread in pool._state.threads:
            thread.join(_EXIT_SECONDS)


def _close_all() -> None:
    for pool in list(_pools):
        # A thread that the forked process does not have may hold the lock.
        pool._state.lock, pool._state.ended = threading.RLock(), "This process was forked."
        # Otherwise it would keep the workers alive that outlive this one.
        for worker in pool._state.workers:
            worker.close()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_close_all)
