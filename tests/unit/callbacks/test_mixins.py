from __future__ import annotations

import io
import logging
import sys

import keras
import pytest

from distrib.callbacks.mixins import print_message


@pytest.fixture
def absl_log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages that the `absl` logger receives."""
    messages: list[str] = []
    monkeypatch.setattr(logging.getLogger("absl"), "info", messages.append)
    return messages


def test_messages_go_to_standard_output(
    capsys: pytest.CaptureFixture[str], absl_log: list[str]
) -> None:
    print_message("saved")
    assert capsys.readouterr().out == "saved\n"
    assert absl_log == []


def test_messages_go_to_the_log_of_absl_as_keras_own(
    capsys: pytest.CaptureFixture[str], absl_log: list[str]
) -> None:
    keras.config.disable_interactive_logging()
    try:
        print_message("saved")
    finally:
        keras.config.enable_interactive_logging()
    assert capsys.readouterr().out == ""
    assert absl_log == ["saved"]


def test_characters_that_the_terminal_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    print_message("saved to modèle.keras")
    assert out.getvalue() == b"saved to mod\\xe8le.keras\n"
