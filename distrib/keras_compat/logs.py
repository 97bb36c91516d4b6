"""How Keras turns logs into plain Python numbers. Tried with Keras 3.12 and 3.15."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras.src.utils.python_utils import pythonify_logs


def plain_logs(logs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return logs with Python floats in place of tensors, as `fit` reports them."""
    plain: dict[str, Any] = pythonify_logs(logs)
    return plain
