"""`RemoteMonitor` that sends from the chief only."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import keras

from distrib.cluster import current
from distrib.errors import ConfigurationError

from .mixins import StateInAttributes


class RemoteMonitor(StateInAttributes, keras.callbacks.RemoteMonitor):
    """Send each epoch's results to a server by HTTP POST.

    Keras's `RemoteMonitor`, which sends from the chief only and raises at construction if
    `requests` is missing. It has no state. If a process is killed after it sent an epoch and before
    it saved the epoch's checkpoint, the epoch is sent again with the same values.

    Args:
        root: URL of the server. Defaults to `"http://localhost:9000"`.
        path: Appended to `root`. Defaults to `"/publish/epoch/end/"`.
        field: Name of the form field that holds the data. Defaults to `"data"`.
        headers: Further HTTP headers. Defaults to `None`.
        send_as_json: Whether to send JSON instead of a form. Defaults to `False`.

    Raises:
        ConfigurationError: If the package `requests` is not installed.

    Example:
    >>> monitor = RemoteMonitor(root="http://localhost:9000", send_as_json=True)
    """

    def __init__(
        self,
        root: str = "http://localhost:9000",
        path: str = "/publish/epoch/end/",
        field: str = "data",
        headers: dict[str, str] | None = None,
        send_as_json: bool = False,
    ) -> None:
        if find_spec("requests") is None:
            raise ConfigurationError(
                "RemoteMonitor needs the package `requests`, which is not installed; "
                "run: pip install requests"
            )
        super().__init__(root, path, field, headers, send_as_json)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Send the epoch's results."""
        if current().is_chief:
            super().on_epoch_end(epoch, logs)
