"""Lets Keras draw from the iterator of a pipeline itself, so that a step costs what it always does.

That is possible where nothing draws ahead of the training, and the length of an epoch is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops.iterator_ops import OwnedIterator

from distrib.data.pipelines.batch_readers import BEGUN, DRAWN, ITERATOR, KEPT, PASSES
from distrib.data.pipelines.passes import Passes, is_whole, restore_batch, save_batch
from distrib.log import log

# Batches that are drawn for a whole state at most, of data without end.
_LONG = 500


class DirectReader:
    """Hands out the iterator of a pipeline, and counts what was drawn by what was trained on.

    To capture a state near the end of a pass, it draws a few batches ahead, see `is_whole`. These
    come first afterwards: for so long, `iterator` stands for one that returns them.

    Args:
        passes: Over a pipeline of known length, or without end; its state can be saved.
        shuffles: See `is_whole`.
        endless: Whether a pass that Keras makes goes on with the next one at its end.

    Attributes:
        iterator: A `tf.data.Iterator`.
    """

    def __init__(self, passes: Passes, shuffles: int, endless: bool) -> None:
        self._passes, self._shuffles, self._endless = passes, shuffles, endless
        self._source = passes.batches
        self._spec = self._source.element_spec
        self.iterator = OwnedIterator(
            components=[self._source._iterator_resource], element_spec=self._spec
        )
        self._done = 0  # Batches of the pass that were trained on.
        self._drawn = 0  # Batches of all passes.
        self._kept: deque[Any] = deque()
        self._untouched = False
        self._rest: Any = None
        self._kept_first: Any = None

    def batches(self, begin: Callable[[], bool]) -> Any:
        """See `BatchReader`; for other uses than Keras's."""
        return tf.data.Dataset.from_generator(self._draw_all, output_signature=self._spec)

    def _draw_all(self) -> Iterator[Any]:
        length = self._passes.length
        number = 0 if self._endless or length is None else length - self._done
        while self._endless or length is None or number > 0:
            number -= 1
            yield next(self.iterator)

    def begin_pass(self) -> None:
        """Go to the next pass, unless no batch of this one was trained on."""
        if self._passes.length is None or self._done == 0:
            return
        for _ in range(self._passes.length - self._done):
            if self._kept:
                self._kept.popleft()
            else:
                self._draw()
        self._done, self._untouched = 0, False
        self._hand_out()

    def trained(self, count: int) -> None:
        """See `BatchReader`."""
        self._untouched = False
        self._done += count
        if self._endless and self._passes.length is not None:
            self._done %= self._passes.length
        if not self._kept:
            self._drawn += count
            return
        self._drawn += max(count - len(self._kept), 0)
        for _ in range(min(count, len(self._kept))):
            self._kept.popleft()
        if not self._kept:
            self._hand_out()

    def get_state(self) -> dict[str, Any]:
        """See `BatchReader`."""
        kept = len(self._kept)
        iterator: dict[str, Any] | None = self._passes.save()
        while iterator is not None and not is_whole(iterator, self._shuffles):
            most = PASSES * (self._passes.length or _LONG)
            if len(self._kept) < most:
                self._kept.append(self._draw())
            iterator = self._passes.save() if len(self._kept) < most else None
        if len(self._kept) > kept:
            self._hand_out()
        entries = [save_batch(tf.experimental.Optional.from_value(each)) for each in self._kept]
        length, position, ends = self._passes.length, 0, 0
        if length is not None:
            position, ends = self._done + len(self._kept), max(self._drawn - 1, 0) // length
            end = length - self._done
            while position > length:
                entries.insert(end, save_batch(self._passes.end))
                position, end = position - length, end + length + 1
        state: dict[str, Any] = {DRAWN: self._drawn + ends, KEPT: entries, BEGUN: self._done > 0}
        if iterator is not None:
            state[ITERATOR] = {**iterator, "position": position}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """See `BatchReader`."""
        if self._untouched:
            return
        length = self._passes.length
        drawn = state[DRAWN] if length is None else state[DRAWN] - state[DRAWN] // (length + 1)
        if ITERATOR in state:
            self._passes.restore(state[ITERATOR])
            position = state[ITERATOR]["position"]
        else:
            log.info(f"drawing the {drawn} batches before once more.")
            for _ in range(drawn):
                self._draw()
            position = drawn % (length or 1)
        entries = [restore_batch(each, self._passes.entry_spec) for each in state[KEPT]]
        self._kept = deque(each.get_value() for each in entries if each.has_value())
        self._drawn, self._done, self._untouched = drawn, 0, True
        if length is not None and state[BEGUN]:
            marks = [index for index, each in enumerate(entries) if not each.has_value()]
            self._done = length - marks[0] if marks else position - len(entries)
        self._hand_out()

    def _draw(self) -> Any:
        self._drawn += 1
        return next(self._source)

    @tf.autograph.experimental.do_not_convert
    def _hand_out(self) -> None:
        """Let `iterator` return what was kept, and then the pipeline's batches."""
        source = self._source
        if self._kept:
            if self._rest is None:
                self._rest = tf.data.Dataset.counter().map(lambda _: self._source.get_next())
            kept = [tf.data.Dataset.from_tensors(each) for each in self._kept]
            batches = reduce(lambda some, more: some.concatenate(more), [*kept, self._rest])
            source = self._kept_first = iter(batches.with_options(_no_reading_ahead()))
        self.iterator._iterator_resource = source._iterator_resource


def _no_reading_ahead() -> Any:
    """Return options without those of TensorFlow's optimizations that add a `prefetch`."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return options
