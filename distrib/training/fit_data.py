"""The data that a `fit` trains on: how they are recognized, and how exactly they are resumed."""

from __future__ import annotations

from typing import Any

from distrib.cluster import current
from distrib.data.compare_contents import compare_contents
from distrib.data.contents import contents_of
from distrib.keras_compat.trainer import Arrays, arrays_of
from distrib.log import log
from distrib.state.data_differences import (
    CONTENTS,
    CONVERTED,
    PLAIN_ARRAYS,
    SOURCE,
    without_weights,
)
from distrib.state.training_position import TrainingPosition
from distrib.training.fit_call import FitCall


def describe_data(call: FitCall) -> dict[str, Any] | None:
    """Return a description by which other training data are recognized. A collective.

    Returns:
        JSON values, the same on all ranks but for rounding; `None` for what Keras alone can read,
        such as a `tf.distribute.DistributedDataset`.
    """
    described: dict[str, Any]
    if call.dataset is not None:
        described = {"batches_per_epoch": call.batches, **call.fingerprint_of(call.dataset)}
        if call.as_given["x"] is call.data:
            return described
        described[CONVERTED] = True
    else:
        arrays = arrays_of(call.iterator)
        if arrays is None:
            return None
        described = _merged(current().collectives.allgather(_describe(arrays)))
    if call.as_given["class_weight"] is None:
        return described
    # It has become weights of the examples, but it is an argument, and may change.
    return without_weights(described)


def warn_if_inexact(call: FitCall, epoch: int | None) -> None:
    """Say once that the order of the data is not resumed exactly, if so.

    Args:
        call: The `fit`.
        epoch: The epoch that a resumed run goes on with, from 1; `None` for a run that begins.
    """
    effect = None if call.dataset is not None else _effect_of_resuming(call)
    if effect is None:
        return
    if epoch is None:
        log.info(
            f"this data is not resumed exactly: after a restart {effect}. To go on with the very "
            f"next batch, {_advice(call)}."
        )
    else:
        log.warning(
            f"resuming at epoch {epoch} on data that is not resumed exactly: {effect}, so the run "
            f"will end otherwise than without the restart. To avoid that, {_advice(call)}."
        )


def restart_epoch(call: FitCall, position: TrainingPosition, ranks: int) -> None:
    """Begin the epoch in progress again, and say so, if its data cannot go on in the middle.

    An epoch that only lacks its validation is left as it is.

    Args:
        call: The `fit`, whose data have been restored.
        position: Of the checkpoint; changed if the epoch begins again.
        ranks: Number of ranks that have saved it.
    """
    if call.dataset is None or not call.dataset.restarts_epoch:
        return
    if position.batch and not position.train_done:
        log.warning(
            f"the checkpoint is from {ranks} ranks, each with other batches of its own than here, "
            f"so epoch {position.epoch + 1} begins again: its first {position.batch} batches are "
            "trained on twice."
        )
        position.batch = 0


def _effect_of_resuming(call: FitCall) -> str | None:
    arrays = arrays_of(call.iterator)
    if arrays is not None:
        again = "Keras shuffles the arrays as in the first epochs again"
        return again if arrays.shuffle else None
    return f"the {type(call.data).__name__} begins again with its first batches"


def _advice(call: FitCall) -> str:
    if arrays_of(call.iterator) is None:
        return "train on `cluster.dataset((x, y), batch_size=..., shuffle=True)`"
    if current().size > 1:
        return "pass all arrays on every rank"
    return "pass dense arrays (`.to_tensor()`, `tf.sparse.to_dense`, `.toarray()`)"


def _describe(arrays: Arrays) -> dict[str, Any]:
    return {
        SOURCE: PLAIN_ARRAYS,
        "num_examples": int(arrays.leaves[0][1].shape[0]),
        "structure": [
            {
                "path": path,
                "shape": [None if size is None else int(size) for size in leaf.shape[1:]],
                "dtype": _dtype_name(leaf),
            }
            for path, leaf in arrays.leaves
        ],
        "batch_size": arrays.batch_size,
        CONTENTS: contents_of(arrays.leaves),
    }


def _merged(by_rank: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one description of what the ranks have: the same arrays, or each its own."""
    contents = [described[CONTENTS] for described in by_rank]
    if all(compare_contents(contents[0], each) != "other" for each in contents):
        return by_rank[0]
    return {
        **by_rank[0],
        "num_examples": sum(described["num_examples"] for described in by_rank),
        CONTENTS: {
            f"rank {rank} {path}": column
            for rank, columns in enumerate(contents)
            for path, column in columns.items()
        },
    }


def _dtype_name(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", "mixed")  # A DataFrame has one for each column.
    return str(getattr(dtype, "name", dtype))
