import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Unit tests use the integration tests' `harness` too, to fork processes.
sys.path.insert(0, str(Path(__file__).with_name("integration")))


def pytest_configure() -> None:
    # A shell makes its background jobs ignore SIGINT, and child processes inherit that. Some tests
    # interrupt their processes.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where ranks share cores, Gloo's receiving thread preempts the sender that woke it and spins on
    # the lock that the sender holds. SCHED_BATCH, which ranks inherit, turns that preemption off;
    # two Horovod ranks on two cores then need half of the CPU time.
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def pytest_collection_finish() -> None:
    # Keep garbage collections, which Keras's `clear_session` makes too, away from modules' objects.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def place_in_a_job() -> Iterator[None]:
    """A test that calls `init()` as a rank does not make those after it children of that rank."""
    yield
    os.environ.pop("DISTRIB_RANK_PROCESS", None)
