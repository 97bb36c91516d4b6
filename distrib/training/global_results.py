"""The results of an epoch, an evaluation or a prediction, over the data of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np

from distrib.cluster import current
from distrib.data.dataset import Dataset
from distrib.errors import LostPeerError
from distrib.keras_compat.trainer import own_results
from distrib.state.global_metrics import global_result
from distrib.state.variables import replicas_of, statistics_of
from distrib.training.derived_data import is_shared
from distrib.training.fit_alike import check_call_alike
from distrib.training.fit_call import EvaluateCall, FitCall


def shared_results(call: FitCall | EvaluateCall, logs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the results over all ranks' data, if all ranks share the work.

    Every rank takes part in `fit` and in its validation. An `evaluate` by itself may be the chief's
    alone, unless its data is a `cluster.dataset`, of which each rank has a part.

    Args:
        call: In progress.
        logs: Of its last step.
    """
    in_fit = isinstance(call, FitCall) or call.in_fit
    if not in_fit and not is_shared(call.data):
        return own_results(call.model, logs)
    with nullcontext() if in_fit else explaining("evaluate"):
        _average_statistics(call.model)
        results, reported = global_result(call.model, logs, current().collectives)
    if sorted(reported) == sorted(results):
        return results
    # Steps of the user's may report other things than the metrics, which are this rank's.
    return {**logs, **{name: results[name] for name in logs if name in reported}}


def shared_predictions(
    predict: Callable[[int | None], Any], dataset: Dataset, steps: int | None
) -> Any:
    """Return the predictions for all examples, in their order, on every rank. A collective.

    Args:
        predict: Returns this rank's, given a number of steps.
        dataset: The examples.
        steps: As passed to `predict`.

    Raises:
        ConfigurationError: If the dataset is shuffled, or the model has not one row an example.
    """
    with explaining("predict"):
        check_call_alike("predict", dataset)
        dataset.check_order()
        limit = None if steps is None or steps >= dataset.num_batches else steps
        own = predict(limit) if len(dataset) else None
        parts = current().collectives.allgather(own)
    # The chief has examples of every batch, so it has each of the model's outputs.
    outputs = [[] if part is None else keras.tree.flatten(part) for part in parts]
    joined = [
        dataset.join([each[number] if each else None for each in outputs], limit)
        for number in range(len(outputs[0]))
    ]
    return keras.tree.pack_sequence_as(parts[0], joined)


@contextmanager
def explaining(call: str) -> Iterator[None]:
    """Name the mistake that looks like a lost peer: the chief evaluates, the others have ended.

    Args:
        call: The method, `evaluate` or `predict`.
    """
    try:
        yield
    except LostPeerError as error:
        raise LostPeerError(
            f"{error} This was in `model.{call}` of a cluster.dataset, which all ranks have to "
            "call; if only the chief does, give it arrays."
        ) from error


def _average_statistics(model: Any) -> None:
    """Average the moving statistics of batch normalization over the ranks.

    Each rank has statistics of its own shards; after averaging, validation and checkpoints are the
    same on every rank. In float64, so that equal values stay as they are.
    """
    variables = statistics_of(model)
    if not variables:
        return
    mine = [replicas_of(variable)[0].numpy() for variable in variables]
    flat = np.concatenate([value.astype(np.float64).ravel() for value in mine])
    cluster = current()
    mean = cluster.collectives.allreduce(flat) / cluster.size
    ends = np.cumsum([value.size for value in mine])[:-1]
    for variable, value, piece in zip(variables, mine, np.split(mean, ends), strict=True):
        for replica in replicas_of(variable):
            replica.assign(piece.reshape(value.shape).astype(value.dtype))
