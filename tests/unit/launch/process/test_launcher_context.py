import signal
import threading
from pathlib import Path

import pytest

from distrib.errors import Preempted
from distrib.launch.process import launcher_context
from distrib.launch.process.launcher_context import LauncherContext
from distrib.launch.process.liveness_file import LivenessFile
from distrib.launch.process.signals import Signals


def test_waiting_touches_the_liveness_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_context, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr("distrib.launch.process.liveness_file.INTERVAL_SECONDS", 0.05)
    path = tmp_path / "alive"
    threading.Timer(0.1, path.unlink).start()
    assert not LauncherContext(print, LivenessFile(path), Signals()).wait(0.4)
    assert path.exists()


def test_a_request_to_stop_ends_a_pause() -> None:
    signals = Signals()
    threading.Timer(0.1, signals.record, [signal.SIGTERM]).start()
    with pytest.raises(Preempted):
        LauncherContext(print, LivenessFile(None), signals).pause(600)


def test_a_pause_of_0_seconds() -> None:
    LauncherContext(print, LivenessFile(None), Signals()).pause(0)
