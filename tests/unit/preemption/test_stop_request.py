import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

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


def ending_of_child(child: Callable[[], object]) -> int:
    """Fork, run `child`, and return how that process has ended."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_forked_child_has_the_handlers_of_before(in_thread: bool) -> None:
    results = []

    def fork() -> None:
        results.append(ending_of_child(lambda: send(signal.SIGTERM)))
        results.append(ending_of_child(lambda: os._exit(len(signal.pthread_sigmask(0, [])))))

    stop = StopRequest()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    stop.listen(writer)
    try:
        if in_thread:
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
        else:
            fork()
        assert not stop.requested
        send(signal.SIGTERM)
        assert stop.requested
        assert os.read(reader, 10) == bytes([signal.SIGTERM])
    finally:
        stop.restore_handlers()
        os.close(reader)
        os.close(writer)
    assert results == [-signal.SIGTERM, 0]


def test_a_handler_of_c_code_stays(tmp_path: Path) -> None:
    with (tmp_path / "stacks").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        try:
            stop = StopRequest()
            stop.listen()
            send(signal.SIGUSR1)
            stop.restore_handlers()
            send(signal.SIGUSR1)
            assert not stop.requested
        finally:
            faulthandler.unregister(signal.SIGUSR1)
    assert (tmp_path / "stacks").read_text().count("most recent call first") == 2


def test_one_of_c_code_for_another_signal_comes_back(tmp_path: Path) -> None:
    with (tmp_path / "stacks").open("w") as file:
        faulthandler.register(signal.SIGTERM, file)
        try:
            stop = StopRequest()
            stop.listen()
            send(signal.SIGTERM)
            assert stop.requested
            stop.restore_handlers()
            send(signal.SIGTERM)
        finally:
            faulthandler.unregister(signal.SIGTERM)
    assert "most recent call first" in (tmp_path / "stacks").read_text()
