"""Makes a `Feed` of the `tf.data` pipeline, generator or other iterable that `fit` was given.

What is promised of it, and why that is not more, is said before training (`pipeline_notes.py`).
TensorFlow 2.21 shards a pipeline by its options with the private `_AutoShardDataset` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import GeneratorType
from typing import Any, Literal

import tensorflow as tf
from tensorflow.python.data.experimental.ops.distribute import _AutoShardDataset

from distrib.cluster import current
from distrib.data.pipelines.batch_readers import BatchReader, ReadAhead
from distrib.data.pipelines.direct_reader import DirectReader
from distrib.data.pipelines.evaluation_feed import EvaluationFeed
from distrib.data.pipelines.feed import Feed
from distrib.data.pipelines.passes import Passes
from distrib.data.pipelines.rows import Rows, spec_of_rows
from distrib.data.pipelines.steps import (
    Step,
    is_sharded,
    reshuffling,
    seeds,
    sizes,
    steps_of,
    unsavable,
    unseeded_shuffles,
    without_repeat,
)
from distrib.data.resumable import ResumableDataset
from distrib.errors import ConfigurationError
from distrib.keras_compat.data_adapters import is_iterable_of_batches, pipeline_of

# What to do where the state of the data cannot be saved.
Resume = Literal["replay", "epoch"]

# Batches in a pass; of fewer a step of the pipeline may hold all, see `is_whole`.
_SMALL = 64
# More batches than a strategy draws ahead. What a generator has drawn at the time of a save must
# not depend on its speed.
_AHEAD = 8
_TF_DATA = "`tf.data` pipeline"
_Policy = tf.data.experimental.AutoShardPolicy


@dataclass(frozen=True)
class Pipeline:
    """What a `Feed` is made of.

    Attributes:
        batches: A `tf.data.Dataset`.
        steps: Its steps.
        kind: What the user has passed, in words.
        once: Whether there is no second pass.
        repeats: Whether it has no end, because of a `repeat` that was taken off.
        rows: Which rows of a batch this rank takes; `None` for all.
        shard: (rank, size) if the batches are this rank's own; `None` in one process.
    """

    batches: Any
    steps: list[Step]
    kind: str
    once: bool = False
    repeats: bool = False
    rows: Rows | None = None
    shard: tuple[int, int] | None = None

    @property
    def is_of_tf_data(self) -> bool:
        """Whether the user has passed a `tf.data.Dataset`."""
        return self.kind == _TF_DATA

    @property
    def random_steps(self) -> list[str]:
        """Names of the steps that draw TensorFlow's random numbers."""
        return [step.name for step in self.steps if step.state and step.is_random]

    @property
    def why_not_savable(self) -> list[str]:
        """Reasons why the state cannot be saved, in words."""
        return unsavable(self.steps)


def pipeline_in(data: Any) -> Pipeline | None:
    """Return what a `Feed` can be made of; `None` for other data.

    Raises:
        ConfigurationError: If the ranks cannot share it.
    """
    if is_iterable_of_batches(data):
        kind = type(data).__name__
        if not isinstance(data, GeneratorType):
            batches = pipeline_of(data)
            return Pipeline(batches, steps_of(batches), kind, shard=_own_shard())
        if current().size > 1:
            raise ConfigurationError(
                "A Python generator cannot be shared between ranks: each would train on all that "
                "it yields. Train on `cluster.dataset(...)` of an object with `__len__` and "
                "`__getitem__`, or on a `keras.utils.PyDataset`."
            )
        batches = pipeline_of(data)
        return Pipeline(batches, steps_of(batches), kind, once=True)
    if not is_pipeline(data):
        return None
    data, repeats = without_repeat(data)
    return _split(Pipeline(data, steps_of(data), _TF_DATA, repeats=repeats))


def feed_of(
    pipeline: Pipeline, model: Any, arguments: Mapping[str, Any], resume: Resume | None
) -> Feed | None:
    """Return the data of a `fit`; `None` if they need nothing but Keras.

    Args:
        pipeline: The training data.
        model: That trains on them.
        arguments: Of `fit`, by name.
        resume: See `Resume`; `None` if nothing is saved.

    Raises:
        ConfigurationError: If the run cannot be resumed on such data.
    """
    if resume is None and pipeline.rows is None:
        return None
    batches, steps = pipeline.batches, arguments["steps_per_epoch"]
    count = int(batches.cardinality())
    without_end = pipeline.repeats or count == tf.data.INFINITE_CARDINALITY
    endless = without_end or steps not in (None, count)
    passes = Passes(batches, pipeline.once)
    savable = not pipeline.why_not_savable and passes.is_savable()
    if any(step.kind.startswith("data_service") for step in pipeline.steps):
        savable = False
        _refuse_service(resume)
    draws_ahead = arguments["class_weight"] is not None or _has_strategy(model)
    shuffles = reshuffling(pipeline.steps)
    # Keras draws so many at once, at the end of an epoch too.
    even = endless or count % model.steps_per_execution == 0
    known = even and (count == tf.data.INFINITE_CARDINALITY or count >= _SMALL)
    reader: BatchReader
    spec = batches.element_spec
    if known and not draws_ahead and not pipeline.once and not pipeline.rows and savable:
        reader = DirectReader(passes, shuffles, endless)
    else:
        share = None
        if pipeline.rows is not None:
            spec = spec_of_rows(batches)
            share = (pipeline.rows.of, spec)
        reader = ReadAhead(
            passes,
            batches.element_spec,
            savable=savable,
            shuffles=shuffles,
            skip_ends=without_end or (endless and pipeline.rows is None),
            once=pipeline.once,
            keep=resume is not None,
            ahead=1 if savable else _AHEAD,
            share=share,
        )
    return Feed(
        batches,
        reader,
        spec,
        endless,
        [step.name for step in pipeline.steps],
        seeds(pipeline.steps),
        pipeline.rows,
        pipeline.shard,
        savable,
        repeatable=not pipeline.random_steps,
        within_epochs=savable or resume == "replay",
        sizes=sizes(pipeline.steps),
    )


def evaluation_feed_of(data: Any, count: int | None) -> EvaluationFeed | None:
    """Return the validation data of a run that saves checkpoints.

    Args:
        data: `validation_data`, as given.
        count: `validation_steps`.

    Returns:
        `None` for other data than a pipeline with one `shuffle` whose state can be saved. With
        two, the state is not whole before a batch is drawn, which the ranks would have to do alike.
    """
    if not is_pipeline(data):
        return None
    batches, repeats = without_repeat(data)
    # What reads ahead of a validation would begin a next pass, or not.
    if int(batches.cardinality()) == tf.data.INFINITE_CARDINALITY or (repeats and count is None):
        return None
    batches = batches.repeat() if repeats else batches
    batches = batches if count is None else batches.take(count)
    steps = steps_of(batches)
    if reshuffling(steps) != 1 or unsavable(steps):
        return None
    passes = Passes(batches)
    return EvaluationFeed(passes, batches, steps) if passes.is_savable() else None


def is_pipeline(data: Any) -> bool:
    """Tell whether data is a `tf.data` pipeline that was not made from resumable data."""
    return isinstance(data, tf.data.Dataset) and not any(
        isinstance(step.dataset, ResumableDataset) for step in steps_of(data)
    )


def _split(pipeline: Pipeline) -> Pipeline:
    """Share a pipeline between the ranks: by rows, or as its options or its own `shard` say."""
    cluster = current()
    if cluster.size == 1:
        return pipeline
    options = pipeline.batches.options()
    policy = options.experimental_distribute.auto_shard_policy
    if policy in (_Policy.FILE, _Policy.DATA, _Policy.HINT):
        sharded = _AutoShardDataset(pipeline.batches, cluster.size, cluster.rank)
        return replace(pipeline, batches=sharded, shard=_own_shard())
    if policy == _Policy.OFF or is_sharded(pipeline.steps):
        return replace(pipeline, shard=_own_shard())
    unseeded = unseeded_shuffles(pipeline.steps)
    if unseeded:
        raise ConfigurationError(
            f"`{unseeded[0]}` of the `tf.data` pipeline has no seed, so the ranks would not take "
            "their rows of the same batches. Pass `seed=...`, or call "
            "`keras.utils.set_random_seed(...)` before the pipeline is made."
        )
    return replace(pipeline, rows=Rows(cluster.rank, cluster.size))


def _own_shard() -> tuple[int, int] | None:
    cluster = current()
    return None if cluster.size == 1 else (cluster.rank, cluster.size)


def _has_strategy(model: Any) -> bool:
    strategy = model.distribute_strategy
    return tf.distribute.has_strategy() or strategy is not tf.distribute.get_strategy()


def _refuse_service(resume: Resume | None) -> None:
    if resume == "replay":
        raise ConfigurationError(
            "The `tf.data` service hands batches out in no fixed order, so a run cannot go on "
            "with the next one. Pass `resume='epoch'` to BackupAndRestore, or read the data "
            "without `tf.data.experimental.service`."
        )
