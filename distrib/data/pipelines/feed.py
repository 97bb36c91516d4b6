"""`Feed`: a `tf.data` pipeline, a generator or another iterable of batches, as `fit` was given it.

Its position is not (epoch, step) alone but the state of an iterator, which is saved with every
checkpoint. `batch_readers.py` knows what has been drawn from the iterator and what trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from distrib.data.arrays import leaves_with_paths
from distrib.data.pipelines.batch_readers import BatchReader, ReadAhead
from distrib.data.pipelines.direct_reader import DirectReader
from distrib.data.pipelines.rows import Rows
from distrib.data.resumable import ResumableDataset
from distrib.log import log

_OF, _SEEDS = "of", "seeds"
# Keys of a fingerprint: the number of ranks that read data of their own, `None` if they share them;
# sizes of batches and sources.
RANKS, SIZES = "ranks", "sizes"


class Feed(ResumableDataset):
    """Batches of a pipeline.

    Args:
        pipeline: A `tf.data.Dataset` of global batches, or of this rank's own.
        reader: Reads it.
        element_spec: Structure of the batches that this process gets.
        endless: Whether an epoch goes on where the one before has ended.
        steps: Names of the pipeline's steps, by which others are recognized.
        seeds: Of the `shuffle`s.
        rows: Which rows of a batch this rank takes; `None` for all.
        shard: (rank, size) of a rank whose batches are its own. Defaults to `None`.
        savable: Whether the state of the pipeline can be saved. Defaults to `True`.
        repeatable: Whether floats are the same on all ranks that run it. Defaults to `True`.
        within_epochs: Whether a run can go on in the middle of an epoch. Defaults to `True`.
        sizes: Of its batches and sources, in words. Defaults to none.
    """

    def __init__(
        self,
        pipeline: Any,
        reader: BatchReader,
        element_spec: Any,
        endless: bool,
        steps: Sequence[str],
        seeds: Sequence[int] = (),
        rows: Rows | None = None,
        shard: tuple[int, int] | None = None,
        savable: bool = True,
        repeatable: bool = True,
        within_epochs: bool = True,
        sizes: Sequence[str] = (),
    ) -> None:
        self.savable, self._repeatable = savable, repeatable
        self.endless, self.within_epochs = endless, within_epochs
        self._pipeline, self._reader, self._rows, self._shard = pipeline, reader, rows, shard
        self._element_spec, self.is_shared = element_spec, rows is not None
        self._steps, self._seeds, self._sizes = list(steps), list(seeds), list(sizes)
        self._batches = int(pipeline.cardinality())
        self._step = 0
        self._length: int | None = None  # Of an epoch whose end has been seen.
        self._continues = False
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False  # See `Dataset`.
        self._inner = reader.batches(self._begin_pass).with_options(options)
        super().__init__(self._inner._variant_tensor)

    def _inputs(self) -> list[Any]:
        return [self._inner]

    def __iter__(self) -> Any:
        """Return an iterator over a pass, or over all if its reader is a `DirectReader`."""
        if isinstance(self._reader, DirectReader):
            return self._reader.iterator
        return super().__iter__()

    @property
    def element_spec(self) -> Any:
        """Structure of `tf.TensorSpec`s."""
        return self._element_spec

    @property
    def num_batches(self) -> int | None:
        """Number of batches in an epoch; `None` until that is known, and if endless."""
        if self.endless:
            return None
        return self._batches if self._batches >= 0 else self._length

    @property
    def every_rank_has_examples(self) -> bool:
        """See `ResumableDataset`; a rank without any gets a row that counts nothing."""
        return True

    def share(self, step: int) -> float:
        """See `ResumableDataset`; of the batch that comes next."""
        batch = self.next_batch()
        return 1.0 if self._rows is None or batch is None else self._rows.share(batch)

    def next_batch(self) -> Any | None:
        """Return the batch that comes next, before it is split; `None` if it cannot be told."""
        return self._reader.next_batch() if isinstance(self._reader, ReadAhead) else None

    def digest(self) -> str:
        """Return a digest of the batch that comes next, by which ranks compare their batches."""
        sha256 = hashlib.sha256()
        for leaf in tf.nest.flatten(self.next_batch(), expand_composites=True):
            if self._repeatable or not leaf.dtype.is_floating:
                sha256.update(tf.io.serialize_tensor(leaf).numpy())
        return sha256.hexdigest()

    def cardinality(self, name: str | None = None) -> Any:
        """Return the number of batches in an epoch."""
        count = tf.data.INFINITE_CARDINALITY if self.endless else self._batches
        return tf.constant(count, tf.int64, name=name)

    def seek(self, epoch: int, step: int) -> None:
        """Let the next pass be a new one, or go on with that of the restored state."""
        self._step, self._length = step, None
        self._continues = step > 0
        if isinstance(self._reader, DirectReader) and self._begin_pass():
            self._reader.begin_pass()

    def trained(self, count: int) -> None:
        """See `ResumableDataset`."""
        self._reader.trained(count)
        self._step += count
        unknown = not self.endless and self._batches == tf.data.UNKNOWN_CARDINALITY
        if unknown and isinstance(self._reader, ReadAhead) and self._reader.pass_is_over():
            self._length = self._step

    def get_state(self) -> dict[str, Any]:
        """Return the state of the iterator and of what was drawn ahead."""
        if not self.within_epochs:
            return {}
        shard = None if self._shard is None else [*self._shard]
        return {**self._reader.get_state(), _OF: shard, _SEEDS: self._seeds}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state, unless it is that of another shard."""
        here = None if self._shard is None else [*self._shard]
        self.restarts_epoch = bool(state) and state[_OF] != here
        if state and not self.restarts_epoch:
            if state[_SEEDS] != self._seeds:
                log.warning(
                    "this run is not resumed exactly: `shuffle` has another seed than in the "
                    "checkpoint. Pass `seed=...`, or call `keras.utils.set_random_seed(...)` "
                    "before the pipeline is made."
                )
            self._reader.set_state(state)

    def fingerprint(self) -> dict[str, Any]:
        """Return the properties under which equal positions mean equal batches, as JSON values."""
        own = self._shard is not None
        return {
            "source": "a tf.data pipeline",
            "structure": [
                {"path": path, "spec": str(spec)}
                for path, spec in leaves_with_paths(self._pipeline.element_spec)
            ],
            "cardinality": None if own else self._batches,
            "steps": self._steps,
            SIZES: None if own else self._sizes,
            RANKS: self._shard and self._shard[1],
        }

    def _begin_pass(self) -> bool:
        continues, self._continues = self._continues, False
        return not (continues or self.endless)
