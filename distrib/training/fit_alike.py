"""What has to be alike on all ranks in a `fit`, and in an `evaluate` that they share.

Not here, because it may differ: `verbose`, the data that each rank passes as its own, where a rank
writes its logs, the learning rate (the chief's counts), seeds, and names of layers, which Keras
counts up in every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras

from distrib.cluster import current
from distrib.data.compare_contents import compare_contents
from distrib.data.dataset import Dataset
from distrib.data.resumable import ResumableDataset
from distrib.errors import ConfigurationError
from distrib.gradients.optimizer import reduction_of
from distrib.keras_compat.layers import layers_of
from distrib.state.data_differences import kind_of
from distrib.state.variables import optimizers_of
from distrib.training.fit_call import FitCall
from distrib.training.rank_callbacks import check_callbacks, describe_callbacks
from distrib.training.rank_comparison import CLASS, gather_aspects, plain, ranks, refuse_differences

CALL = "call"
_CALLBACKS = "callbacks"
_LAYERS = "layers"
_BATCHES = "batches"
_ARGUMENTS = (
    *("epochs", "initial_epoch", "batch_size", "class_weight"),
    *("validation_split", "validation_steps", "validation_freq", "validation_batch_size"),
)
_CONTENTS = "contents"
# Keys of Keras's configs that may differ, or that tell what a process has done before; and what
# `adapt` learned, since all ranks begin with what the chief's layers hold.
_IGNORED = frozenset(
    {
        *("name", "seed", "build_config", "shared_object_id"),
        *("vocabulary", "vocabulary_size", "idf_weights", "bin_boundaries"),
    }
)
# Arguments of `compile` that are described by themselves, and one that may differ: Keras's default
# for it depends on whether a rank's host has a GPU.
_DESCRIBED = ("optimizer", "steps_per_execution", "jit_compile")
_ADVICE = (
    "All ranks have to call `{call}` alike; what prints, logs or writes may depend on the rank."
)


def check_fit_alike(call: FitCall, steps: int | None) -> None:
    """Refuse a `fit` that differs between the ranks. All ranks call it together.

    Args:
        call: The `fit`.
        steps: Batches in an epoch; `None` if that is not known.

    Raises:
        ConfigurationError: Says what differs, and by rank how.
    """
    aspects = {
        CALL: "fit",
        _CALLBACKS: describe_callbacks(call.arguments["callbacks"]),
        **{name: plain(call.as_given.get(name)) for name in _ARGUMENTS},
        "sample_weight": call.as_given.get("sample_weight") is not None,
        **_describe_data(call.fingerprint_of, x=call.data, **_validation_data(call)),
        _BATCHES: steps if steps and steps > 0 else None,
        **_describe_model(call.model),
    }
    values = gather_aspects(aspects, current().collectives)
    check_same_call(values)
    check_callbacks(values.pop(_CALLBACKS))
    contents = values.pop(_CONTENTS)
    batches = values.pop(_BATCHES)
    if None in values[_LAYERS]:  # On some rank the model is built only later, and compared then.
        del values[_LAYERS]
    refuse_differences(values, _ADVICE.format(call="fit"))
    _check_contents(contents)
    _check_batches(call, batches)


def check_same_call(values: Mapping[str, list[Any]]) -> None:
    """Refuse a `fit` on some ranks that meets an `evaluate` or a `predict` on others.

    Args:
        values: As gathered, with `CALL`.

    Raises:
        ConfigurationError: Names the ranks.
    """
    calls = values[CALL]
    if len(set(calls)) == 1:
        return
    first, *others = [
        (call, ranks(rank for rank, other in enumerate(calls) if other == call))
        for call in sorted(set(calls), key=lambda call: (call != "fit", call))
    ]
    rest = " and ".join(f"`model.{call}` of a cluster.dataset on {on}" for call, on in others)
    raise ConfigurationError(
        f"`model.{first[0]}` was called on {first[1]}, but {rest}. Every rank has a part of the "
        "data, so all of them have to call both; if only the chief evaluates or predicts, give it "
        "arrays."
    )


def check_call_alike(call: Literal["evaluate", "predict"], data: Any) -> None:
    """Refuse a call on shared data while another rank does something else. A collective.

    Args:
        call: What this rank calls.
        data: Its data: a cluster.dataset, or what was made from one.

    Raises:
        ConfigurationError: If another rank makes another call, or has other data.
    """
    aspects = {CALL: call, **_describe_data(Dataset.fingerprint, x=data)}
    values = gather_aspects(aspects, current().collectives)
    check_same_call(values)
    contents = values.pop(_CONTENTS)
    refuse_differences(values, _ADVICE.format(call=call))
    _check_contents(contents)


def _check_contents(by_rank: list[dict[str, Any]]) -> None:
    """Refuse other examples; preprocessing may have rounded them otherwise on each rank."""
    for rank, contents in enumerate(by_rank):
        for name, columns in contents.items():
            if compare_contents(by_rank[0][name], columns) == "other":
                raise ConfigurationError(
                    f"`{name}`: rank {rank} has passed other examples to `cluster.dataset` than "
                    "rank 0. Pass all examples on every rank, in the same order; each takes its "
                    "own of every batch."
                )


def _check_batches(call: FitCall, batches: list[int | None]) -> None:
    shared = call.dataset is not None and call.dataset.is_shared
    if shared and not any(batches):
        return  # All ranks reach the end of the same pipeline after the same batch.
    if None in batches:
        raise ConfigurationError(
            "It is not known how many batches an epoch of this data has, and a rank with "
            "fewer than the others would leave them waiting. Pass `steps_per_epoch`, add "
            "`.apply(tf.data.experimental.assert_cardinality(batches))` to a `tf.data` pipeline, "
            "or train on `cluster.dataset(...)`."
        )
    if len(set(batches)) > 1:
        raise ConfigurationError(
            f"The ranks have {batches} batches in an epoch, and those with fewer would leave "
            "the others waiting. Train on `cluster.dataset(...)`, or pass a `steps_per_epoch` that "
            "all of them have."
        )


def _describe_data(fingerprint_of: Callable[[Any], dict[str, Any]], **given: Any) -> dict[str, Any]:
    """Describe data by the name of their argument, and apart from that what arrays hold."""
    described: dict[str, Any] = {_CONTENTS: {}}
    for name, data in given.items():
        if isinstance(data, ResumableDataset):
            fingerprint = fingerprint_of(data)
            described[_CONTENTS][name] = fingerprint.pop(_CONTENTS, {})
            kind = {CLASS: kind_of(fingerprint), "repeat": data.endless}
            described[name] = {**plain(fingerprint), **kind}
        else:
            described[name] = {CLASS: "data of each rank's own"}
    return described


def _validation_data(call: FitCall) -> dict[str, Any]:
    given = call.arguments["validation_data"] is not None
    return {"validation_data": call.validation_dataset} if given else {}


def _describe_model(model: Any) -> dict[str, Any]:
    optimizers = optimizers_of(model)
    config = _serialized(model.get_compile_config)
    return {
        _LAYERS: [_describe_layer(layer) for layer in layers_of(model)] if model.built else None,
        "optimizer": [_describe_optimizer(each) for each in optimizers]
        if len(optimizers) > 1
        else _describe_optimizer(optimizers[0]),
        "compile": config and {k: v for k, v in config.items() if k not in _DESCRIBED},
        "steps_per_execution": model.steps_per_execution,
    }


def _describe_optimizer(optimizer: Any) -> dict[str, Any]:
    described: dict[str, Any] = {CLASS: type(optimizer).__name__}
    config = optimizer.get_config()
    if not isinstance(config.get("learning_rate"), dict):  # A schedule is computed by each rank.
        config.pop("learning_rate", None)
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        config.pop("inner_optimizer", None)
        described["inner_optimizer"] = _describe_optimizer(inner)
    reduction = reduction_of(optimizer)
    if reduction is not None:
        described |= {"compression": reduction.compression, "op": reduction.op}
    return described | plain(config, _IGNORED)


def _describe_layer(layer: Any) -> dict[str, Any]:
    """Return what a layer does. A user's layer may know its rank, so only its class counts."""
    kind = type(layer)
    described: dict[str, Any] = {CLASS: kind.__name__, "trainable": layer.trainable}
    described["dtype"] = layer.dtype_policy.name
    if kind.__module__.startswith("keras.") and not isinstance(layer, keras.Model):
        described = (_serialized(layer.get_config) or {}) | described
    return described


def _serialized(config: Callable[[], Any]) -> Any:
    """Return a config as JSON; `None` if Keras cannot serialize what the user has written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About loading, which never happens.
        try:
            return plain(config(), _IGNORED)
        except (NotImplementedError, TypeError, ValueError, OSError):
            return None
