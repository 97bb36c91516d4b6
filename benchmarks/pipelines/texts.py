"""Texts and their token numbers, without TensorFlow, for worker processes."""

from __future__ import annotations

from typing import Any

import numpy as np


def tokens(text: str) -> Any:
    """Return token numbers of a text, int64 of shape `[256]`; takes about 2 ms of Python."""
    words: dict[str, int] = {}
    row = [words.setdefault(text[i : i + 3], len(words)) for i in range(0, len(text) - 3)]
    return np.array(row[:256], np.int64)


def text(index: int) -> str:
    """Return a text of 3,000 letters."""
    return "".join(map(chr, np.random.default_rng(index).integers(97, 123, 3_000)))


class Texts:
    """Texts with random access."""

    def __init__(self, number: int) -> None:
        self.texts = [text(i) for i in range(number)]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index]
