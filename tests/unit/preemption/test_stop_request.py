import os
import signal
import threading

import pytest

from distrib.preemption.stop_request import StopRequest


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_only_set_the_flag(number: signal.Signals) -> None:
    stop = StopRequest()
    before = signal.getsignal(number)
    stop.listen()
    try:
        assert not stop.requested
        send(number)
        send(number)
        assert stop.requested
    finally:
        stop.restore_handlers()
    assert signal.getsignal(number) is before


def test_other_threads_install_no_handlers() -> None:
    stop = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop.listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_time_of_the_first_request_is_kept() -> None:
    stop = StopRequest()
    assert stop.requested_at is None
    stop.request()
    first = stop.requested_at
    assert first is not None
    stop.request()
    assert stop.requested_at == first
    assert stop.requested


def test_a_handler_that_somebody_else_has_set_since_stays() -> None:
    def mine(number: int, frame: object) -> None:
        pass

    stop, before = StopRequest(), signal.getsignal(signal.SIGUSR1)
    stop.listen()
    signal.signal(signal.SIGUSR1, mine)
    stop.restore_handlers()
    try:
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)
