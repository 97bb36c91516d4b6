import os
import select
import signal
import threading
import time

import pytest

from distrib.launch.process.signals import HEEDED, Signals


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize("number", HEEDED)
def test_signals_are_noted_and_taken_once(number: signal.Signals) -> None:
    signals = Signals()
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here")
    with signals.caught():
        os.kill(os.getpid(), number)
        assert is_readable(signals.waker)
        assert signals.take() == [number]
    assert not is_readable(signals.waker)
    assert signals.take() == []
    assert signals.asked_to_stop


def test_what_is_ignored_stays_so() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = Signals()
        with signals.caught():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.asked_to_stop
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in HEEDED]
    with Signals().caught():
        pass
    assert [signal.getsignal(number) for number in HEEDED] == before


def test_many_signals() -> None:
    signals = Signals()
    for _ in range(100_000):  # More than the pipe that wakes has room for.
        signals.note(15)
    assert len(signals.take()) == 100_000


def test_waiting_ends_with_a_signal() -> None:
    signals = Signals()
    assert not signals.wait(0.01)
    threading.Timer(0.1, signals.note, [15]).start()
    began = time.monotonic()
    assert signals.wait(60)
    assert signals.wait(60)
    assert time.monotonic() - began < 30
