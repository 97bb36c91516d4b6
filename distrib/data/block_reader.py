"""Reads whole blocks in the background, ahead of the batches that need them.

The order says which blocks the next batches need, so a pass over the data is planned batch by batch
(`BlockPasses.plan`, a generator, in order) and the batches are put together afterwards, several at
once (`BlockPasses.take`). A block is fetched a few blocks before it is needed at most, and
dropped after the last batch that may need it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from distrib.data.arrays import Array
from distrib.data.block_order import BlockOrder, BlockUse

# Part of the blocks of a window that are fetched, or kept, before a batch needs them.
_AHEAD = 0.25


@dataclass(frozen=True)
class BlockBatch:
    """A batch whose blocks are being fetched.

    Attributes:
        index: Indices of its examples; int64, shape `[n]`.
        epoch: Epoch that it belongs to.
        blocks: What is fetched for each of its blocks, by the block's first example.
        block_size: Number of examples in a block.
    """

    index: Array
    epoch: int
    blocks: dict[int, Future[Any]]
    block_size: int

    def rows(self) -> Iterator[tuple[Future[Any], Array, Array]]:
        """Yield for each block: what is fetched, rows of the batch, and their rows in the block."""
        start = self.index - self.index % self.block_size
        for first, block in self.blocks.items():
            (rows,) = np.nonzero(start == first)
            yield block, rows, self.index[rows] - first


class _Blocks:
    """The blocks that the batches from one step on need, as far as they are fetched."""

    def __init__(
        self,
        uses: Iterator[BlockUse],
        fetch: Callable[[int], Any],
        num_threads: int,
        most_ahead: int,
    ) -> None:
        self._uses = uses
        self._most_ahead = most_ahead
        self._next = next(uses, None)
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(num_threads, "distrib-blocks")
        self._fetched: dict[int, Future[Any]] = {}
        self._uses_of: Counter[int] = Counter()
        # By the step of the last use, and of the first one.
        self._ends: list[tuple[int, int]] = []
        self._begins: list[int] = []

    def advance(self, step: int) -> None:
        """Drop what no batch from `step` on needs, and fetch what the next ones do."""
        while self._ends and self._ends[0][0] < step:
            _, block = heapq.heappop(self._ends)
            self._uses_of[block] -= 1
            if not self._uses_of[block]:
                del self._uses_of[block], self._fetched[block]
        while self._begins and self._begins[0] <= step:
            heapq.heappop(self._begins)
        while self._next and (self._next.first <= step or len(self._begins) < self._most_ahead):
            self._add(self._next, step)
            self._next = next(self._uses, None)

    def __getitem__(self, block: int) -> Future[Any]:
        return self._fetched[block]

    def close(self, cancel: bool) -> None:
        """Let the threads end; `cancel` what is not being fetched yet."""
        self._pool.shutdown(wait=False, cancel_futures=cancel)

    def _add(self, use: BlockUse, step: int) -> None:
        if use.block not in self._fetched:
            self._fetched[use.block] = self._pool.submit(self._fetch, use.block)
        self._uses_of[use.block] += 1
        heapq.heappush(self._ends, (use.last, use.block))
        if use.first > step:
            heapq.heappush(self._begins, use.first)


class BlockPasses:
    """Passes over data whose blocks are shuffled.

    Args:
        order: Which examples make up a batch.
        fetch: Returns the examples from a first one to the one before a last one.
        num_threads: Number of blocks to fetch at once.
    """

    def __init__(
        self, order: BlockOrder, fetch: Callable[[int, int], Any], num_threads: int
    ) -> None:
        self._order = order
        self._fetch = fetch
        self._num_threads = num_threads
        self._numbers = itertools.count()
        self._planned: dict[int, BlockBatch] = {}

    def plan(self, epoch: int, first_step: int) -> Iterator[int]:
        """Yield a number for each batch of a pass, for `take`, while its blocks are being fetched.

        If the pass is abandoned, which closes the generator, nothing of it stays behind.
        """
        epoch, first_step = int(epoch), int(first_step)
        uses = self._order.block_uses(epoch, first_step)
        size, window = self._order.blocks.size, self._order.blocks.window
        ahead = max(1, int(_AHEAD * window))
        blocks = _Blocks(uses, self._fetch_block, self._num_threads, ahead)
        waiting: list[int] = []
        try:
            for step, index in self._order.batches(epoch, first_step):
                blocks.advance(step)
                needed = {
                    block * size: blocks[block] for block in np.unique(index // size).tolist()
                }
                number = next(self._numbers)
                self._planned[number] = BlockBatch(index, epoch, needed, size)
                # Not the numbers of all batches, of which a long epoch has many millions.
                waiting = [*(each for each in waiting if each in self._planned), number]
                yield number
        except GeneratorExit:
            blocks.close(cancel=True)
            for number in waiting:
                self._planned.pop(number, None)
            raise
        blocks.close(cancel=False)

    def take(self, number: int) -> BlockBatch:
        """Return a batch that was planned, once."""
        return self._planned.pop(number)

    def _fetch_block(self, block: int) -> Any:
        return self._fetch(*self._order.bounds_of(block))
