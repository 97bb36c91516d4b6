import signal
import threading
from pathlib import Path

import pytest

from distrib.errors import Preempted
from distrib.launch.process import launcher
from distrib.launch.process.launcher import Console
from distrib.launch.process.liveness_file import Alive
from distrib.launch.process.signals import Signals


def test_waiting_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr("distrib.launch.process.liveness_file.INTERVAL_SECONDS", 0.05)
    path = tmp_path / "alive"
    threading.Timer(0.1, path.unlink).start()
    assert not Console(print, Alive(path), Signals()).wait(0.4)
    assert path.exists()


def test_a_request_to_stop_ends_it() -> None:
    signals = Signals()
    threading.Timer(0.1, signals.note, [signal.SIGTERM]).start()
    with pytest.raises(Preempted):
        Console(print, Alive(None), signals).pause(600)


def test_no_time_is_no_wait() -> None:
    Console(print, Alive(None), Signals()).pause(0)
