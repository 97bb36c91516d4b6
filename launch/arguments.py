"""Types of command-line arguments that several commands share."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

from distrib.units import parse_duration, parse_seconds, parse_size


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def port(text: str) -> int:
    """Return the number of a TCP port."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 2**16):
        raise ArgumentTypeError(f"{text!r} is not a port: a whole number from 1 to 65535")
    return int(text)


def variable(text: str) -> str:
    """Return `NAME` or `NAME=VALUE`."""
    if not text.partition("=")[0] or "\0" in text:
        raise ArgumentTypeError(f"{text!r} names no variable: write NAME or NAME=VALUE")
    return text


def whole(text: str) -> int:
    """Return a whole number of at least 0."""
    if not (text.isascii() and text.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def seconds(text: str) -> float:
    """Return a number of seconds of at least 0."""
    return _checked(parse_seconds, text)


def duration(text: str) -> float:
    """Return the seconds of a duration such as `5m`."""
    return _checked(parse_duration, text)


def size(text: str) -> float:
    """Return the bytes of a size such as `1.2TB`."""
    return _checked(parse_size, text)


def _checked(parse: Callable[[str], float], text: str) -> float:
    """Return `parse(text)`, with the error as the type whose message argparse shows."""
    try:
        return parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
