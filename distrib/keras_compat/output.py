"""How Keras turns logs into plain Python numbers, and prints. Tried with 3.12 and 3.15."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras.src.utils import io_utils, python_utils


def plain_logs(logs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return logs with Python floats in place of tensors, as `fit` reports them."""
    plain: dict[str, Any] = python_utils.pythonify_logs(logs)
    return plain


def print_message(message: str) -> None:
    """Print as Keras's callbacks do, so that a progress bar is not torn."""
    io_utils.print_msg(message)
