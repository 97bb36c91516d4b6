"""The order of `shuffle="blocks"`: blocks are read in turn, examples are shuffled within windows.

A block is a range of consecutive examples. Put the full blocks of an epoch in a random order, with
the short one at the end, and begin somewhere in this sequence: that is the order in which examples
are *read*. The rows of a batch are divided into lanes, and each lane has a part of the sequence of
its own, which it goes through in windows of a few blocks. Within a window the examples are in
random order. So

- a batch mixes examples of all lanes' windows, `Blocks.window` blocks in all;
- a rank, which takes some rows of each batch, reads the blocks of its own lanes only;
- an example is found from (seed, epoch, step, row) at once, by two ciphers (`permutation.py`).

The lanes' windows begin at different steps, so that blocks are read at an even rate. What remains
behind the last full batch is a window by itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from distrib.data.arrays import Array
from distrib.data.order import Blocks, Order
from distrib.data.permutation import hash_of, permute

# Examples whose indices are computed together, which takes hardly longer than for a few.
_INDICES = 4096
_MOST_LANES = 16
# What a key is for.
_START, _BLOCKS, _WINDOW = range(3)


@dataclass(frozen=True)
class BlockUse:
    """Says that batches need a block.

    Attributes:
        first: First step of a batch that may hold examples of the block.
        last: Last step of such a batch.
        block: Number of the block.
    """

    first: int
    last: int
    block: int


@dataclass(frozen=True)
class BlockOrder:
    """Computes batches of an `Order` whose `blocks` are set."""

    order: Order

    @property
    def blocks(self) -> Blocks:
        """Sizes of blocks and windows."""
        assert self.order.blocks is not None
        return self.order.blocks

    @cached_property
    def lanes(self) -> int:
        """Number of parts into which the rows of a batch are divided.

        A power of two, so that 2, 4, 8 or 16 ranks have lanes of their own.
        """
        most, lanes = min(_MOST_LANES, self.blocks.window), 1
        while 2 * lanes <= most and self.order.batch_size % (2 * lanes) == 0:
            lanes *= 2
        return lanes

    @cached_property
    def rows_per_lane(self) -> int:
        """Number of a lane's rows in a full batch."""
        return self.order.batch_size // self.lanes

    @cached_property
    def lane_length(self) -> int:
        """Number of a lane's examples in an epoch."""
        return self.order.full_batches * self.rows_per_lane

    @cached_property
    def window_length(self) -> int:
        """Number of examples that a lane shuffles; its first and last window may have fewer."""
        return self.blocks.window // self.lanes * self.blocks.size

    def bounds_of(self, block: int) -> tuple[int, int]:
        """Return the first example of a block, and the one behind its last."""
        start = block * self.blocks.size
        return start, min(start + self.blocks.size, self.order.num_examples)

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[int, Array]]:
        """Yield (step, indices of this process's examples) for each batch from a step on."""
        stop = min(self.order.full_batches, self.order.own_batches)
        chunk = max(1, _INDICES // max(1, self.order.own_batch_size))
        for start in range(first_step, stop, chunk):
            steps = np.arange(start, min(start + chunk, stop))
            yield from zip(steps.tolist(), self._full_batches(epoch, steps), strict=True)
        if first_step <= self.order.full_batches < self.order.own_batches:
            yield self.order.full_batches, self._last_batch(epoch)

    def _full_batches(self, epoch: int, steps: Array) -> Array:
        rows = np.tile(self.order.own_rows(0), len(steps))
        lane, row = np.divmod(rows, self.rows_per_lane)
        within = np.repeat(steps * self.rows_per_lane, len(rows) // len(steps)) + row
        window = (within + self._shift(lane)) // self.window_length
        first, behind = self._window(lane, window)
        key = hash_of(self._key(epoch, _WINDOW), lane, window)
        position = lane * self.lane_length + first + permute(within - first, behind - first, key)
        return self._examples(epoch, position).reshape(len(steps), -1)

    def _last_batch(self, epoch: int) -> Array:
        rows = self.order.own_rows(self.order.full_batches)
        first = self.order.full_batches * self.order.batch_size
        key = hash_of(self._key(epoch, _WINDOW), self.lanes, 0)
        return self._examples(epoch, first + permute(rows, self.order.num_examples - first, key))

    def block_uses(self, epoch: int, first_step: int) -> Iterator[BlockUse]:
        """Yield the blocks that this process needs from a step on, by the step of their first use.

        A block that two windows share is there twice.
        """
        start, stop = self.order.shard.bounds(self.order.batch_size)
        lanes = range(start // self.rows_per_lane, -(-stop // self.rows_per_lane))
        uses = (self._lane_uses(epoch, lane, first_step) for lane in lanes)
        yield from heapq.merge(*uses, key=lambda use: use.first)
        last_step = self.order.full_batches
        if first_step <= last_step < self.order.own_batches:
            first = last_step * self.order.batch_size
            for block in self._blocks(epoch, first, self.order.num_examples):
                yield BlockUse(last_step, last_step, int(block))

    def _lane_uses(self, epoch: int, lane: int, first_step: int) -> Iterator[BlockUse]:
        within = first_step * self.rows_per_lane
        while within < self.lane_length:
            number = (within + self._shift(lane)) // self.window_length
            first, behind = (int(bound) for bound in self._window(lane, number))
            steps = max(first_step, first // self.rows_per_lane), (behind - 1) // self.rows_per_lane
            begin = lane * self.lane_length
            for block in self._blocks(epoch, begin + first, begin + behind):
                yield BlockUse(*steps, int(block))
            within = behind

    def _shift(self, lane: Any) -> Any:
        return lane * self.window_length // self.lanes

    def _window(self, lane: Any, number: Any) -> tuple[Any, Any]:
        """Return the positions in a lane between which a window lies."""
        first = number * self.window_length - self._shift(lane)
        return np.maximum(first, 0), np.minimum(first + self.window_length, self.lane_length)

    def _blocks(self, epoch: int, first: int, behind: int) -> Array:
        """Return the blocks at positions `first` to `behind - 1` of the sequence of reading."""
        start, examples = self._start(epoch), self.order.num_examples
        first, behind = first + start, behind + start
        parts = [
            (first, min(behind, examples)),
            (max(first, examples) - examples, behind - examples),
        ]
        slots = [
            np.arange(low // self.blocks.size, -(-high // self.blocks.size))
            for low, high in parts
            if low < high
        ]
        return self._block_at(epoch, np.concatenate(slots))

    def _examples(self, epoch: int, position: Array) -> Array:
        """Return the examples at positions of the sequence of reading."""
        place = (position + self._start(epoch)) % self.order.num_examples
        slot, within = np.divmod(place, self.blocks.size)
        return self._block_at(epoch, slot) * self.blocks.size + within

    def _block_at(self, epoch: int, slot: Array) -> Array:
        full = self.order.num_examples // self.blocks.size
        block = np.array(slot)
        shuffled = slot < full
        block[shuffled] = permute(slot[shuffled], full, self._key(epoch, _BLOCKS))
        return block

    def _start(self, epoch: int) -> int:
        return int(self._key(epoch, _START)[0] % np.uint64(self.order.num_examples))

    def _key(self, epoch: int, purpose: int) -> Any:
        return hash_of(self.order.seed, epoch, purpose)
