"""What is said before training of data whose resume costs something, or is not exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distrib.data.pipelines.steps import Step, buffered_bytes, steps_of, unseeded_shuffles
from distrib.keras_compat.data_adapters import is_iterable_of_batches
from distrib.training.fit_pipelines import Pipeline, Resume, is_pipeline
from distrib.units import format_size

_LARGE = 100e6  # Bytes.


def notes_on(pipeline: Pipeline, savable: bool, resume: Resume | None) -> list[str]:
    """Return sentences about a pipeline, for a run that saves checkpoints.

    Args:
        pipeline: What the user has passed.
        savable: Whether its state can be saved.
        resume: See `Resume`.
    """
    return [*_on_ranks(pipeline), *(_on_resume(pipeline, savable, resume) if resume else ())]


def notes_on_validation(data: Any, resumed: bool) -> Iterator[str]:
    """Yield what is to be said of the validation data of a run that saves checkpoints.

    Args:
        data: `validation_data`, as given.
        resumed: Whether a restart goes on with the order that comes next.
    """
    if is_iterable_of_batches(data):
        yield (
            f"after a restart the {type(data).__name__} in `validation_data` begins again with its "
            "first batches. Validate on arrays or `cluster.dataset(...)` to see the same data."
        )
    if not is_pipeline(data):
        return
    steps = steps_of(data)
    if resumed:
        unseeded = unseeded_shuffles(steps)
        if unseeded:
            yield (
                f"`{unseeded[0]}` in `validation_data` has no seed, so its order after a restart "
                "is another one than without it. Validate without it, or pass `seed=...`."
            )
        for step in steps:
            if step.kind == "cache":  # Of a `shuffle` the buffer is empty between validations.
                yield from _on_buffer(step)
        return
    found = [step.name for step in steps if step.kind == "shuffle" or step.is_random]
    if found:
        yield (
            f"`{found[0]}` in `validation_data` begins again after a restart: results differ by "
            "rounding, or by more if `validation_steps` leaves some of the data out. Validate "
            "without it."
        )


def _on_ranks(pipeline: Pipeline) -> Iterator[str]:
    if pipeline.rows is not None:
        yield (
            f"each of the {pipeline.rows.size} ranks runs the whole `tf.data` pipeline and trains "
            "on its rows of every batch: the pipeline's batch is the global batch. To have each "
            "rank read its own files, set the option `experimental_distribute.auto_shard_policy`."
        )
    elif pipeline.shard is not None:
        yield (
            f"each of the {pipeline.shard[1]} ranks trains on batches of its own, so the global "
            f"batch is {pipeline.shard[1]} times that of the {pipeline.kind}."
        )


def _on_resume(pipeline: Pipeline, savable: bool, resume: Resume) -> Iterator[str]:
    unseeded = unseeded_shuffles(pipeline.steps)
    if savable:
        for step in pipeline.steps:
            yield from _on_buffer(step)
        if unseeded:
            yield (
                f"`{unseeded[0]}` has no seed: a restart goes on with the very next batch, and "
                "later epochs have another random order than without it. Pass `seed=...`, or call "
                "`keras.utils.set_random_seed(...)` first."
            )
        return
    why = f"a checkpoint cannot hold the state of a {pipeline.kind}"
    if pipeline.is_of_tf_data:
        why = f"{' and '.join(pipeline.why_not_savable)}, so a checkpoint cannot hold its state"
    if resume == "epoch":
        yield (
            f"{why}: checkpoints are saved at the end of epochs, and "
            f"after a restart the {pipeline.kind} begins again, with the order of its first epoch."
        )
        return
    yield (
        f"{why}: after a restart all batches so far are drawn again and dropped, which takes as "
        "long as drawing them took. With `BackupAndRestore(..., resume='epoch')` a restart begins "
        "the epoch again instead."
    )
    random = [*pipeline.random_steps, *unseeded]
    if random:
        yield (
            f"this data is not resumed exactly: `{random[0]}` draws other random "
            "numbers after a restart. Use `tf.random.stateless_*` operations or layers of the "
            "model for augmentation, and seeds for `shuffle`."
        )


def _on_buffer(step: Step) -> Iterator[str]:
    size = buffered_bytes(step)
    if size > _LARGE:
        yield (
            f"every checkpoint holds the elements in the buffer of `{step.name}`, "
            f"{format_size(size)}. Shuffle (or cache) before the elements are read or decoded, or "
            "train on `cluster.dataset(...)`, which has no buffer."
        )
