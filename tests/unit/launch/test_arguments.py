from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

import pytest

from distrib.launch.arguments import port, positive, seconds, variable, whole


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        *((positive, "1", 1), (whole, "0", 0), (seconds, "0", 0.0), (seconds, "1.5", 1.5)),
        *((port, "1", 1), (port, "65535", 65535)),
        *((variable, text, text) for text in ("NAME", "NAME=", "NAME=a=b")),
    ],
)
def test_valid_arguments(kind: Callable[[str], Any], text: str, value: Any) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((positive, text) for text in ("0", "-1", "1.5", "", "\u0661")),
        *((port, text) for text in ("0", "65536", "-1", "ssh", "")),
        *((whole, text) for text in ("-1", "1.5", "", "\u0661")),
        *((seconds, text) for text in ("-1", "soon", "", "inf", "nan")),
    ],
)
def test_invalid_arguments(kind: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"^'{text}' is not a "):
        kind(text)
