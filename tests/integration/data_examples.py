"""The examples of `data_recipes.py`, without TensorFlow, for worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

EXAMPLES, BATCH, WIDTH = 60, 16, 12
STEPS = 4  # of an epoch; the last batch has 12 examples


def rows() -> tuple[Any, Any]:
    """Return the examples: whole numbers, which each format holds exactly."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (EXAMPLES, WIDTH)).astype("float32")
    return x, (x.sum(axis=1) > WIDTH * 128).astype("int64") + (x[:, 0] > 128)


def records() -> Iterator[bytes]:
    for row, label in zip(*rows(), strict=True):
        yield np.append(row, np.float32(label)).tobytes()


def parse_in_python(record: bytes) -> Any:
    numbers = np.frombuffer(record, np.float32)
    return numbers[:WIDTH], np.int64(numbers[WIDTH])


def augment(record: bytes, rng: np.random.Generator) -> Any:
    row, label = parse_in_python(record)
    return row + rng.normal(size=row.shape).astype(np.float32), label


def of_member(example: dict[str, Any]) -> Any:
    return parse_in_python(example["bin"])


class Records:
    """Records by random access."""

    def __init__(self) -> None:
        self.records = list(records())

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> bytes:
        return self.records[index]
