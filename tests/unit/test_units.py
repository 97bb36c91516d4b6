import doctest

import pytest

from distrib import units
from distrib.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_seconds,
    parse_size,
)

HOUR = 3600.0


def test_examples() -> None:
    failed, tried = doctest.testmod(units)
    assert tried >= 4
    assert failed == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0412, "0.0412 s"),
        (599, "599 s"),
        (600, "10 min"),
        (2 * HOUR, "2 h"),
        (71 * HOUR, "71 h"),
        (72 * HOUR, "3 d"),
        (5 * 365.25 * 24 * HOUR, "5 y"),
    ],
)
def test_durations_are_shown_in_a_unit_that_suits_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 20, "3.0 MiB"),
        (5 << 52, "20480.0 TiB"),
    ],
)
def test_sizes_are_shown_in_a_unit_that_suits_them(size: int, shown: str) -> None:
    assert format_size(size) == shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("2d", 172800), ("1y", 31557600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("1MB", 1e6), ("1.5GB", 1.5e9), ("2TiB", 2.0**41)])
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0s", "-1s", "1w", "s", "1 s", "\u0661s", "1e3s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text!r} is not a time above 0"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "0MB", "1", "1 MB", "1kB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text!r} is not a size above 0"):
        parse_size(text)


@pytest.mark.parametrize("text", ["-1", "soon", "", "inf", "nan"])
def test_what_is_no_number_of_seconds(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text!r} is not a number of seconds$"):
        parse_seconds(text)


def test_no_seconds_are_seconds() -> None:
    assert parse_seconds("0") == 0
