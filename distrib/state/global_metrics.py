"""Exact metrics of data that several ranks share.

A metric such as AUC cannot be computed from the ranks' own results, but its state can be added up:
Keras keeps sums, and says of each variable how replicas are to be combined. So the state of all
metrics is combined over the ranks, the result is computed from that, and each rank's own state is
put back, because a checkpoint that is resumed needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.collectives import Collectives
from distrib.state.variables import replicas_of


def global_result(
    model: Any, logs: Mapping[str, Any], collectives: Collectives
) -> tuple[dict[str, Any], list[str]]:
    """Return the results of a model's metrics over all that all ranks have seen; one collective.

    Args:
        model: A compiled `keras.Model`. All ranks have the same metrics.
        logs: What this rank's last step has reported.
        collectives: Of the job.

    Returns:
        What `model.get_metrics_result()` returns, as arrays, the same on every rank, and the names
        of those among them that the chief's steps report: they may report other things under a
        metric's name.
    """
    variables = model.metrics_variables
    mine = [[replica.numpy() for replica in replicas_of(variable)] for variable in variables]
    gathered = collectives.allgather((mine, _reported(model, logs)))
    values_by_rank = [values for values, _ in gathered]
    try:
        for number, variable in enumerate(variables):
            values = [value for rank in values_by_rank for value in rank[number]]
            whole = _combine(values, variable.aggregation)
            for replica in replicas_of(variable):
                replica.assign(whole)
        return _results(model), gathered[0][1]
    finally:
        for variable, values in zip(variables, mine, strict=True):
            for replica, value in zip(replicas_of(variable), values, strict=True):
                replica.assign(value)


def _reported(model: Any, logs: Mapping[str, Any]) -> list[str]:
    """Return the names under which a step reports what the model's metrics say on this rank."""
    own = _results(model)
    if any(len(replicas_of(variable)) > 1 for variable in model.metrics_variables):
        return [name for name in logs if name in own]  # The step reports a mean over replicas.
    return [name for name in logs if name in own and _is_same(own[name], logs[name])]


def _is_same(one: Any, other: Any) -> bool:
    """Compare values that two compilations of the same formula may round otherwise."""
    one, other = np.asarray(one), np.asarray(other)
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, equal_nan=True)


def _results(model: Any) -> dict[str, Any]:
    """Return what the metrics say, as arrays."""
    strategy = model.distribute_strategy
    # In a replica: elsewhere a strategy would add the replicas' copies up.
    results = strategy.run(model.get_metrics_result)
    return tf.nest.map_structure(
        lambda result: np.asarray(strategy.experimental_local_results(result)[0]), results
    )


def _combine(values: list[Any], aggregation: str | None) -> Any:
    """Combine one value a replica, in a precision that adding up does not spoil."""
    if aggregation == "only_first_replica":
        return values[0]
    wide = np.int64 if values[0].dtype.kind in "iub" else np.float64
    total = np.sum([value.astype(wide) for value in values], axis=0)
    if aggregation == "mean":
        total = total / len(values)
    return np.asarray(total).astype(values[0].dtype)
