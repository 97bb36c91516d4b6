from __future__ import annotations

import importlib.util
from unittest import mock

import numpy as np
import pytest

from distrib.callbacks import RemoteMonitor
from distrib.errors import ConfigurationError


def test_sends_what_keras_sends() -> None:
    monitor = RemoteMonitor(root="http://host", path="/p", headers={"a": "b"}, send_as_json=True)
    with mock.patch("requests.post") as post:
        monitor.on_epoch_end(2, {"loss": np.float32(0.5)})
    post.assert_called_once_with(
        "http://host/p", json={"epoch": 2, "loss": 0.5}, headers={"a": "b"}
    )
    assert monitor.get_state() == {}


@pytest.mark.usefixtures("not_chief")
def test_only_the_chief_sends() -> None:
    with mock.patch("requests.post") as post:
        RemoteMonitor().on_epoch_end(0, {"loss": 0.5})
    post.assert_not_called()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "distrib.callbacks.remote_monitor.find_spec",
        lambda name: None if name == "requests" else find_spec(name),
    )
    with pytest.raises(ConfigurationError, match="pip install requests"):
        RemoteMonitor()
