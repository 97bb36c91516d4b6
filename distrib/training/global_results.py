"""The results of an epoch or an evaluation, over the data of all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from distrib.cluster import current
from distrib.errors import LostPeerError
from distrib.keras_compat.trainer import own_results
from distrib.state.global_metrics import global_result
from distrib.state.variables import replicas_of, statistics_of
from distrib.training.derived_data import is_shared
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
    with nullcontext() if in_fit else explaining_evaluate():
        _average_statistics(call.model)
        results, all_logs = global_result(call.model, logs, current().collectives)
    # A train step of the user's may report other things than its metrics.
    return results if sorted(all_logs[0]) == sorted(results) else logs


@contextmanager
def explaining_evaluate() -> Iterator[None]:
    """Name the mistake that looks like a lost peer: the chief evaluates, the others have ended."""
    try:
        yield
    except LostPeerError as error:
        raise LostPeerError(
            f"{error} This was in `model.evaluate` of a cluster.dataset, which all ranks have to "
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
