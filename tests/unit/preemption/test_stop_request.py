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
    stop.listen(within=test_signals_only_set_the_flag.__code__)
    try:
        assert not stop.requested
        send(number)
        send(number)
        assert stop.requested
    finally:
        stop.ignore()
    assert signal.getsignal(number) is before


def test_outside_the_function_the_previous_handler_gets_the_signal() -> None:
    stop = StopRequest()

    def training() -> None:
        stop.listen(within=training.__code__)
        raise ValueError("a bug in the script")

    with pytest.raises(ValueError, match="bug"):
        training()
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    assert not stop.requested
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_after_leave_further_signals_change_nothing() -> None:
    stop = StopRequest()

    def training() -> None:
        stop.listen(within=training.__code__)
        send(signal.SIGINT)
        stop.leave()

    training()
    try:
        send(signal.SIGINT)
        assert stop.requested
    finally:
        stop.ignore()


def test_other_threads_install_no_handlers() -> None:
    stop = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(
        target=lambda: stop.listen(within=test_other_threads_install_no_handlers.__code__)
    )
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
