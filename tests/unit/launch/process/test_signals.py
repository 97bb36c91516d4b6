import os
import select
import signal
import threading
import time

import pytest

from distrib.launch.process.signals import STOP_SIGNALS, Signals


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_are_recorded_and_taken_once(number: signal.Signals) -> None:
    signals = Signals()
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here")
    with signals.handled():
        os.kill(os.getpid(), number)
        assert is_readable(signals.wakeup_fd)
        assert signals.take() == [number]
    assert not is_readable(signals.wakeup_fd)
    assert signals.take() == []
    assert signals.stop_requested


def test_ignored_signals_stay_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = Signals()
        with signals.handled():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.stop_requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with Signals().handled():
        pass
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_many_signals() -> None:
    signals = Signals()
    for _ in range(100_000):  # More than fit into the wakeup pipe.
        signals.record(15)
    assert len(signals.take()) == 100_000


def test_a_signal_ends_a_wait() -> None:
    signals = Signals()
    assert not signals.wait(0.01)
    threading.Timer(0.1, signals.record, [15]).start()
    began = time.monotonic()
    assert signals.wait(60)
    assert signals.wait(60)
    assert time.monotonic() - began < 30
