"""The wrapper around `fit`, `evaluate` and `predict` of `keras.Model`.

`install` puts it in place for the whole process. A `fit` that needs nothing of distrib (one rank,
no `BackupAndRestore`) is passed on to Keras. Any other gets a `FitCall`, which holds the arguments,
and a callback list that saves checkpoints, synchronizes the ranks, or both.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras

from distrib.backends.horovod_keras import refuse_horovods
from distrib.cluster import current, has_current
from distrib.data.dataset import Dataset
from distrib.errors import ConfigurationError
from distrib.heartbeat import heartbeat
from distrib.keras_compat import trainer
from distrib.keras_compat.optimizers import chain_of
from distrib.training.callback_list import FitCallbackList, flat_callbacks
from distrib.training.derived_data import is_shared
from distrib.training.fit_alike import check_call_alike
from distrib.training.fit_arguments import resumable_arguments, unshuffled
from distrib.training.fit_call import EvaluateCall, FitCall, call_of, fit_of, in_progress
from distrib.training.fit_checks import check_replicas
from distrib.training.global_results import explaining, shared_predictions, shared_results
from distrib.training.multi_rank_fit import MultiRankCallbackList
from distrib.training.py_dataset_arguments import py_dataset_arguments
from distrib.training.resumable_fit import ResumableCallbackList, savers_in


def install() -> None:
    """Wrap the methods of Keras's trainer; idempotent."""
    trainer.wrap("fit", _fit)
    trainer.wrap("evaluate", _evaluate)
    trainer.wrap("predict", _predict)
    trainer.on_iterator(_open_callback_list)
    trainer.replace_results(_results)


def _fit(call: trainer.Call) -> Any:
    optimizers = chain_of(getattr(call.model, "optimizer", None))
    refuse_horovods(optimizers, flat_callbacks(call.arguments["callbacks"]))
    if not call.model.compiled:  # Keras raises its own error then.
        return call.proceed()
    check_replicas(call.model)
    kinds = _kinds_of_list(call.arguments["callbacks"])
    if not kinds and not _has_replicas(call.model):
        return call.proceed(**unshuffled(call.arguments["x"], call.given))
    as_given = dict(call.arguments)
    call.arguments |= resumable_arguments(call.model, call.arguments, call.given)
    if not kinds:
        return call.proceed(**call.arguments)
    call.arguments |= py_dataset_arguments(call.arguments)  # Whose hooks a callback list calls.
    if _has_ranks() and not current().is_chief:
        call.arguments["verbose"] = 0
    fit = FitCall(call.model, call.arguments, as_given)
    callbacks = type(FitCallbackList.__name__, kinds, {})(fit)
    with in_progress(fit):
        try:
            return call.proceed(callbacks=callbacks)
        finally:
            callbacks.fit_ended()


def _kinds_of_list(callbacks: Any) -> tuple[type, ...]:
    """Return the base classes of the callback list, in MRO order; empty if Keras's own suffices.

    Ranks come second: their hooks have read the step's answers when the session asks for them.
    """
    kinds: list[type] = []
    if savers_in(callbacks):
        kinds.append(ResumableCallbackList)
    if _has_ranks():
        kinds.append(MultiRankCallbackList)
    if kinds and isinstance(callbacks, keras.callbacks.CallbackList):
        kinds.append(type(callbacks))  # Its hooks are called as well.
    return tuple(kinds)


def _has_ranks() -> bool:
    return has_current() and current().size > 1


def _has_replicas(model: Any) -> bool:
    """Tell whether a model has copies on several devices of this process's cluster."""
    replicas = model.distribute_strategy.num_replicas_in_sync
    return has_current() and 1 < replicas == current().num_replicas


def _open_callback_list(model: Any, iterator: Any) -> None:
    """Complete the callback list of a `fit` when Keras knows how many steps an epoch has."""
    call = call_of(model)
    if isinstance(call, FitCall) and not call.has_iterator:
        call.iterator = iterator
        call.callbacks.open(iterator.num_batches)
    elif call is None and _has_ranks():
        raise ConfigurationError(
            "`fit` or `evaluate` did not pass through distrib, so the ranks would train models of "
            "their own: something, such as an experiment tracker, has patched `keras.Model` before "
            "`distrib.init()`. Call `distrib.init()` first."
        )


def _evaluate(call: trainer.Call) -> Any:
    in_fit = bool(call.arguments.get("_use_cached_eval_dataset"))
    if not in_fit and _has_ranks() and is_shared(call.arguments["x"]):
        with explaining("evaluate"):
            check_call_alike("evaluate", call.arguments["x"])
    with in_progress(EvaluateCall(call.model, call.arguments["x"], in_fit)):
        return call.proceed(**({} if in_fit else _for_this_rank(call.arguments)))


def _predict(call: trainer.Call) -> Any:
    data, changes = call.arguments["x"], _for_this_rank(call.arguments)
    if _has_ranks() and isinstance(data, Dataset):
        return shared_predictions(
            lambda steps: call.proceed(**{**changes, "steps": steps}), data, call.arguments["steps"]
        )
    if _has_ranks() and is_shared(data):
        warnings.warn(
            "`predict` of what was made from a cluster.dataset returns this rank's part of each "
            f"batch (rank {current().rank} of {current().size}). Pass the cluster.dataset itself, "
            "or arrays, to predict all of them.",
            stacklevel=3,
        )
    return call.proceed(**changes)


def _for_this_rank(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an `evaluate` or `predict` by itself needs changed on a rank."""
    if not _has_ranks() or isinstance(arguments["callbacks"], keras.callbacks.CallbackList):
        return {}
    callbacks = [*flat_callbacks(arguments["callbacks"]), _Heartbeat()]
    verbose = arguments["verbose"] if current().is_chief else 0
    return {"callbacks": callbacks, "verbose": verbose}


class _Heartbeat(keras.callbacks.Callback):
    """Sends heartbeats to the supervisor during an evaluation or a prediction."""

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        heartbeat.beat()

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        heartbeat.beat()


def _results(model: Any, logs: Mapping[str, Any]) -> Mapping[str, Any]:
    call = call_of(model)
    if call is None or not _has_ranks():
        return trainer.own_results(model, logs)
    fit = fit_of(model)
    if fit is not None and (isinstance(call, FitCall) or call.in_fit):
        fit.callbacks.check_data_lasted()
    return shared_results(call, logs)
