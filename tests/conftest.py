import gc
import os
import signal
import sys
from pathlib import Path

# Helper modules of the integration tests, of which unit tests fork processes by `harness`.
sys.path.insert(0, str(Path(__file__).with_name("integration")))


def pytest_configure() -> None:
    # A shell ignores SIGINT for what it starts in the background, and with it all processes of the
    # tests would, some of which are to be interrupted.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where ranks share cores, the thread that Gloo has woken preempts the sender, which holds the
    # lock, and then spins on that lock. In this class a woken thread waits for its turn; ranks
    # inherit it. Two ranks on two cores then use half of the CPU time.
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def pytest_collection_finish() -> None:
    # Keras's `clear_session` and many tests collect garbage: keep the modules out of that.
    gc.collect()
    gc.freeze()
