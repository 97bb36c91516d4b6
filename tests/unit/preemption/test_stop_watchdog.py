import subprocess
import sys

from distrib.errors import EXIT_PREEMPTED

SIGNAL_TO_ALL = """
import multiprocessing, os, signal, sys, time
from distrib.preemption import stop_watchdog as module
from distrib.preemption.stop_request import StopRequest
module._START_SECONDS = module._SECONDS = 0.5
stop = StopRequest()
watchdog = module.StopWatchdog(stop, lambda: print("gave up"))
stop.listen(watchdog.wakeup_fd)
if sys.argv[1] == "worker":
    pool = multiprocessing.get_context("fork").Pool(1)
    result = pool.apply_async(time.sleep, (60,))
    time.sleep(0.2)
    for worker in multiprocessing.active_children():
        worker.terminate()
os.kill(os.getpid(), signal.SIGTERM)
if sys.argv[1] == "worker":
    result.get()
time.sleep(1.5)
print("went on")
"""


def run(kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", SIGNAL_TO_ALL, kind]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_a_process_that_waits_for_a_dead_worker_ends() -> None:
    done = run("worker")
    assert done.stdout == "gave up\n", done.stderr
    assert done.returncode == EXIT_PREEMPTED


def test_a_process_without_workers_is_left_to_end_its_step() -> None:
    done = run("alone")
    assert done.stdout == "went on\n", done.stderr
    assert done.returncode == 0
