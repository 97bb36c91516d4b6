"""Reads the batches of a pipeline so that it is known which ones have been trained on.

`direct_reader.py` lets Keras draw from the pipeline itself, where nothing draws ahead of the
training. `ReadAhead` draws in a thread, and keeps what the training has not come
to: strategies with several devices draw ahead, and the length of an epoch, or of its last batch,
may be known only when the next batch is there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import tensorflow as tf

from distrib.data.pipelines.passes import (
    Passes,
    is_whole,
    restore_batch,
    save_batch,
    tensor_of,
    with_spec,
)
from distrib.log import log

# So many passes are drawn for a whole state at most; fewer do in any but the smallest data.
PASSES = 2
# Keys of a state: of the iterator; the number of batches and ends that were drawn from it; those of
# them that are not trained on; whether the pass that comes next has begun.
ITERATOR, DRAWN, KEPT, BEGUN = "iterator", "drawn", "ahead", "begun"


class BatchReader(Protocol):
    """Reads batches, one pass after the other."""

    def batches(self, begin: Callable[[], bool]) -> Any:
        """Return a `tf.data.Dataset` of a pass.

        Args:
            begin: Called when it is first drawn from; tells whether to go to the next pass.
        """

    def trained(self, count: int) -> None:
        """Take note that this many more batches have been trained on."""

    def get_state(self) -> dict[str, Any]:
        """Return what continues after the last batch that has been trained on."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of any reader."""


class ReadAhead:
    """Draws in a thread, a few batches ahead, and keeps those that are not trained on yet.

    Between two steps it draws until it has as many as it may. So nothing is drawn while a state is
    captured, and a generator that draws random numbers does not do so in between.

    Args:
        passes: Over a pipeline.
        batch_spec: Structure of a batch.
        savable: Whether the state of the iterator can be saved. If not, a new process draws again
            what was drawn.
        shuffles: See `is_whole`.
        skip_ends: Whether a pass that Keras makes goes on with the next one at its end.
        once: Whether the data cannot begin a second pass.
        keep: Whether `trained` will be called. If not, batches are dropped when they are handed
            out.
        ahead: Number of batches to have ready between two steps. Defaults to 1.
        share: What to make of a batch when it is handed out, and the structure of the result.
            Defaults to `None`, for the batch itself.
    """

    def __init__(
        self,
        passes: Passes,
        batch_spec: Any,
        *,
        savable: bool,
        shuffles: int,
        skip_ends: bool,
        once: bool,
        keep: bool,
        ahead: int = 1,
        share: tuple[Callable[[Any], Any], Any] | None = None,
    ) -> None:
        self._passes, self._ahead = passes, ahead
        self._savable, self._shuffles, self._keep = savable, shuffles, keep
        self._skip_ends, self._once = skip_ends and not once, once
        self._share = share and share[0]
        spec = share[1] if share else batch_spec
        self._spec, self._end = tf.OptionalSpec(spec), tf.experimental.Optional.empty(spec)
        self._executor = ThreadPoolExecutor(1, "distrib-read-ahead")
        self._changed = threading.Condition()
        # The first `_handed_out` of them have been given to the pass in progress.
        self._entries: deque[Any] = deque()
        self._handed_out = 0
        self._drawn = 0
        self._drawing = self._started = False
        self._error: BaseException | None = None
        self._pass = 0
        self._begun = self._untouched = False

    @tf.autograph.experimental.do_not_convert
    def batches(self, begin: Callable[[], bool]) -> Any:
        """See `BatchReader`."""

        def take(number: Any) -> Any:
            variant = tf.py_function(self._take, [number], tf.variant)
            return with_spec(tf.ensure_shape(variant, []), self._spec)

        def start(_: Any) -> Any:
            return tf.ensure_shape(tf.py_function(lambda: self._start(begin), [], tf.int64), [])

        number = tf.data.Dataset.from_tensors(0).map(start)
        return _unwrapped(
            number.flat_map(lambda n: tf.data.Dataset.counter().map(lambda _: take(n)))
        )

    def next_batch(self) -> Any | None:
        """Wait for the batch that the next step trains on, and return it; `None` at the end."""
        with self._changed:
            entry = self._wait_for(0)
            if not entry.has_value() and not self._once:
                entry = self._wait_for(1)
        return entry.get_value() if entry.has_value() else None

    def pass_is_over(self) -> bool:
        """Tell whether the pass in progress has no more batches to train on."""
        with self._changed:
            return not self._wait_for(0).has_value()

    def trained(self, count: int) -> None:
        """See `BatchReader`."""
        with self._changed:
            while count > 0:
                count -= bool(self._entries.popleft().has_value())
                self._handed_out = max(self._handed_out - 1, 0)
            self._draw_ahead()

    def end_pass(self) -> None:
        """Leave the pass in progress, for an iterator whose state holds no elements yet."""
        with self._changed:
            self._changed.wait_for(lambda: not self._drawing)
            self._passes = self._passes.anew()
            self._entries.clear()
            self._handed_out = 0
            self._pass += 1  # Whoever still reads the pass that is over gets nothing of the next.
            self._started = self._begun = False

    def get_state(self) -> dict[str, Any]:
        """See `BatchReader`."""
        with self._changed:
            self._wait_until_still()
            iterator = self._whole_state() if self._savable else None
            state = {
                DRAWN: self._drawn,
                KEPT: [save_batch(each) for each in self._entries],
                BEGUN: self._begun,
            }
        return state if iterator is None else {**state, ITERATOR: iterator}

    def _whole_state(self) -> dict[str, Any] | None:
        """Return the state of the iterator; `None` if it is never whole, for very small data."""
        state = self._passes.save()
        while not is_whole(state, self._shuffles):
            if ends_in(self._entries) > PASSES:
                return None
            self._append(next(self._passes))
            state = self._passes.save()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """See `BatchReader`."""
        if self._untouched:
            return
        with self._changed:
            self._wait_until_still()
            if self._savable and ITERATOR in state:
                self._passes.restore(state[ITERATOR])
            else:
                self._replay(state[DRAWN])
            spec = self._passes.entry_spec
            self._entries = deque(restore_batch(each, spec) for each in state[KEPT])
            self._handed_out, self._drawn = 0, state.get(DRAWN, 0)
            self._begun, self._untouched = state[BEGUN], True

    def _replay(self, drawn: int) -> None:
        if drawn > self._drawn:
            log.info(f"drawing the {drawn - self._drawn} batches before once more.")
        for _ in range(self._drawn, drawn):
            next(self._passes)

    def _start(self, begin: Callable[[], bool]) -> int:
        """Begin a pass, and return its number. Passes that are still open end."""
        goes_on = not begin()
        with self._changed:
            self._untouched = False
            self._handed_out = 0
            self._pass += 1
            if not goes_on and self._begun:
                self._drop_to_the_end()
            self._begun = True
            return self._pass

    def _drop_to_the_end(self) -> None:
        while self._wait_for(0).has_value():
            self._entries.popleft()
        if not self._once:
            self._entries.popleft()

    def _take(self, number: Any) -> Any:
        with self._changed:
            if int(number) != self._pass:
                return tensor_of(self._end)
            entry = self._wait_for()
            while self._skip_ends and not entry.has_value():
                self._hand_out()
                entry = self._wait_for()
            if not entry.has_value():
                return tensor_of(self._end)
            self._hand_out()
            self._draw_ahead()
        if self._share is not None:
            entry = tf.experimental.Optional.from_value(self._share(entry.get_value()))
        return tensor_of(entry)

    def _hand_out(self) -> None:
        if self._keep:
            self._handed_out += 1
        else:
            self._entries.popleft()

    def _wait_for(self, index: int | None = None) -> Any:
        """Return an entry when it is there. The lock is held.

        Args:
            index: Of the entry. Defaults to `None`, for the next one to hand out, which `trained`
                may move in the meantime.
        """
        self._started = True
        while len(self._entries) <= (place := self._handed_out if index is None else index):
            if self._error is not None:
                raise self._error
            self._draw_ahead(place + 1)
            self._changed.wait()
        return self._entries[place]

    def _wait_until_still(self) -> None:
        if self._started:
            self._draw_ahead()
        self._changed.wait_for(lambda: not self._drawing)

    def _draw_ahead(self, count: int = 0) -> None:
        """Begin to draw until there are this many, or as many as there may be. The lock is held."""
        if not self._drawing and self._error is None and self._wants(count):
            self._drawing = True
            self._executor.submit(self._draw, count)

    def _wants(self, count: int) -> bool:
        has, may_have = len(self._entries), max(self._ahead, self._handed_out + 1)
        at_end = not self._skip_ends and ends_in(self._entries) > 0
        return has < count or (has < may_have and not at_end)

    def _draw(self, count: int) -> None:
        while True:
            entry, failure = None, None
            try:
                entry = next(self._passes)
            except BaseException as error:  # Raised where the batch is wanted.
                failure = error
            with self._changed:
                if failure is None:
                    self._append(entry)
                self._error = failure
                self._drawing = failure is None and self._wants(count)
                self._changed.notify_all()
                if not self._drawing:
                    return

    def _append(self, entry: Any) -> None:
        self._entries.append(entry)
        self._drawn += 1


def ends_in(entries: Iterable[Any]) -> int:
    """Return the number of ends of passes."""
    return sum(not entry.has_value() for entry in entries)


@tf.autograph.experimental.do_not_convert
def _unwrapped(batches: Any) -> Any:
    present = batches.take_while(lambda batch: batch.has_value())
    return present.map(lambda batch: batch.get_value())
