"""How large blocks and windows are: a few MiB, so that reading is fast and memory bounded.

Sizes depend on the data only and not on the machine, because the order depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distrib.data.order import Blocks

_BLOCK_BYTES = 2 << 20
_WINDOW_BYTES = 256 << 20
# Even if blocks are large, so that some ranks have blocks of their own.
_FEWEST_WINDOW_BLOCKS, _MOST_WINDOW_BLOCKS = 4, 128
# Blocks of small data are smaller, so that they can be shuffled well.
_FEWEST_BLOCKS = 256
_NUMBER_BYTES = 8


def choose_blocks(
    num_examples: int, example_bytes: int, block_size: int | None = None, most: int | None = None
) -> Blocks:
    """Return the sizes for a source.

    Args:
        num_examples: Number of its examples.
        example_bytes: Size of an example in memory.
        block_size: Number of examples that the source reads together. Defaults to `None`: what
            makes 2 MiB, but at most a 256th of all.
        most: Limit of that. Defaults to `None`.
    """
    if block_size is None:
        limits = [_BLOCK_BYTES // max(1, example_bytes), num_examples // _FEWEST_BLOCKS]
        block_size = min(limits if most is None else [*limits, most])
    block_size = max(1, min(block_size, num_examples))
    window = _WINDOW_BYTES // max(1, block_size * example_bytes)
    return Blocks(block_size, max(_FEWEST_WINDOW_BLOCKS, min(window, _MOST_WINDOW_BLOCKS)))


def bytes_of(item: Any) -> int:
    """Return about how much memory an item of a source takes."""
    if isinstance(item, Mapping):
        return sum(bytes_of(value) for value in item.values())
    if isinstance(item, tuple | list):
        return sum(bytes_of(value) for value in item)
    if isinstance(item, str | bytes):
        return len(item)
    # Not `sys.getsizeof`, which differs by the version of Python.
    return int(getattr(item, "nbytes", _NUMBER_BYTES))
