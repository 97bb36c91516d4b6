from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

import pytest

from distrib.launch.arguments import positive, seconds, whole


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(positive, "1", 1), (whole, "0", 0), (seconds, "0", 0.0), (seconds, "1.5", 1.5)],
)
def test_valid_arguments(kind: Callable[[str], Any], text: str, value: Any) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((positive, text) for text in ("0", "-1", "1.5", "", "\u0661")),
        *((whole, text) for text in ("-1", "1.5", "", "\u0661")),
        *((seconds, text) for text in ("-1", "soon", "", "inf", "nan")),
    ],
)
def test_invalid_arguments(kind: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"^'{text}' is not a "):
        kind(text)
