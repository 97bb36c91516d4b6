"""Keras's trainer: wraps its public methods, and reaches what it keeps private.

`fit`, `evaluate` and `predict` are replaced in the class that defines them, so a subclass that
overrides one of them and calls `super()` comes through here as well. Names that are private in
Keras, tried with 3.12 and 3.15:

- `Model._maybe_symbolic_build(iterator)`, which `fit` and `evaluate` call as soon as they have made
  the iterator over their data, and before they make the callback list
- `Model._get_metrics_result_or_logs(logs)`, which turns the last step's logs into an epoch's
- `Model._symbolic_build(data_batch)`, which builds model, metrics and optimizer without a step
- `Model._initial_epoch`, by which Keras's `BackupAndRestore` tells `fit` where to begin
- `Model._loss_tracker`, the metric that holds the mean loss
- `Model._compile_config`, the arguments of `compile`
- `CallbackList._async_train`, `_async_test`: whether Keras calls batch hooks in threads
- `EpochIterator._current_iterator`, `_distributed_dataset` and the attributes `num_batches` and
  `steps_per_epoch` of that class, which is not public
- `ArrayDataAdapter._inputs`, `_batch_size` and `_shuffle`
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.trainer import Trainer
from tensorflow.python.distribute.values import PerReplicaSpec

_METHODS = ("fit", "evaluate", "predict")
_ORIGINALS = {method: getattr(TensorFlowTrainer, method) for method in _METHODS}
_SIGNATURES = {method: inspect.signature(original) for method, original in _ORIGINALS.items()}


class Call:
    """A call of one of the trainer's public methods, which Keras's own method has yet to do.

    Attributes:
        model: The `keras.Model`.
        arguments: All arguments by name, those with defaults included.
        given: Names of the arguments that the caller has passed.
    """

    def __init__(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._original, self._args, self._kwargs = _ORIGINALS[method], args, kwargs
        bound = _SIGNATURES[method].bind(*args, **kwargs)
        self.given = frozenset(bound.arguments)
        bound.apply_defaults()
        self.arguments = dict(bound.arguments)
        self.model = self.arguments.pop("self")
        self.arguments |= self.arguments.pop("kwargs", {})

    def proceed(self, **changes: Any) -> Any:
        """Return what Keras's own method returns: for the arguments as they came, or changed."""
        if not changes:
            return self._original(*self._args, **self._kwargs)
        return self._original(self.model, **{**self.arguments, **changes})


def wrap(method: Literal["fit", "evaluate", "predict"], around: Callable[[Call], Any]) -> None:
    """Replace a public method of the trainer; a second call takes the place of the first.

    It is replaced where Keras defines it, below `keras.Model`. So what patches `keras.Model.fit`,
    such as an experiment tracker, stays above, with the arguments that the user passes.

    Args:
        method: Its name.
        around: Called with the call, which it has to `proceed`; returns what the method returns.
    """
    original = _ORIGINALS[method]

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            call = Call(method, args, kwargs)
        except TypeError:
            return original(*args, **kwargs)  # Raises it in Keras's own words.
        return around(call)

    setattr(TensorFlowTrainer, method, wrapper)


def on_iterator(listener: Callable[[Any, Any], None]) -> None:
    """Call `listener(model, iterator)` when `fit` or `evaluate` has its iterator over the data.

    The model is built by then, as far as Keras builds it before the first step.
    """

    def build(model: Any, iterator: Any = None, data_batch: Any = None) -> None:
        # Looked up now: `strategy_faults` may have replaced it.
        TensorFlowTrainer._maybe_symbolic_build(model, iterator=iterator, data_batch=data_batch)
        if iterator is not None:
            listener(model, iterator)

    keras.Model._maybe_symbolic_build = build


def replace_results(results: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Call `results(model, logs)` for the results of an epoch or of an evaluation.

    Args:
        results: Given the model and the logs of its last step. `own_results` is Keras's.
    """
    keras.Model._get_metrics_result_or_logs = results


def own_results(model: Any, logs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return Keras's own results of an epoch: those of this process."""
    results: Mapping[str, Any] = Trainer._get_metrics_result_or_logs(model, logs)
    return results


def build_symbolically(model: Any, element_spec: Any) -> None:
    """Build model, losses, metrics and optimizer of a compiled model without running a step.

    Args:
        model: A compiled `keras.Model` with Keras's own `train_step`.
        element_spec: `tf.TensorSpec`s of a batch: `(x,)`, `(x, y)` or `(x, y, weight)`.
    """
    model._symbolic_build(data_batch=element_spec)


def set_initial_epoch(model: Any, epoch: int | None) -> None:
    """Have the `fit` that is about to train begin with an epoch; `None` for its own argument."""
    model._initial_epoch = epoch


def loss_tracker_of(model: Any) -> Any:
    """Return the `keras.metrics.Mean` that Keras's own train step keeps the loss in."""
    return model._loss_tracker


def call_hooks_synchronously(callbacks: Any) -> None:
    """Keep a `CallbackList` from calling the batch hooks of `fit` and `evaluate` in threads."""
    callbacks._async_train = False
    callbacks._async_test = False


def element_spec_of(iterator: Any) -> Any:
    """Return the structure of the batches of an epoch iterator, as a train step gets them.

    On several replicas, of one replica's piece.
    """

    def as_in_a_step(spec: Any) -> Any:
        if isinstance(spec, PerReplicaSpec):
            spec = spec._component_specs[0]
        return None if isinstance(spec, tf.NoneTensorSpec) else spec

    # A second `get_tf_dataset()` would copy arrays, and draw batches from a `PyDataset`.
    return tf.nest.map_structure(as_in_a_step, iterator._distributed_dataset.element_spec)


@dataclass(frozen=True)
class Arrays:
    """Arrays that `fit` was given to train on.

    Attributes:
        leaves: The arrays with their paths, without those of `validation_split`.
        batch_size: Examples in a batch.
        shuffle: Whether Keras shuffles them in every epoch.
    """

    leaves: list[tuple[str, Any]]
    batch_size: int
    shuffle: bool


def arrays_of(iterator: Any) -> Arrays | None:
    """Return the arrays that an epoch iterator takes batches from; `None` for other data."""
    adapter = iterator.data_adapter
    if not isinstance(adapter, ArrayDataAdapter):
        return None
    leaves = [
        ("".join(f"[{part!r}]" for part in path), leaf)
        for path, leaf in keras.tree.flatten_with_path(adapter._inputs)
        if leaf is not None
    ]
    return Arrays(leaves, int(adapter._batch_size), bool(adapter._shuffle))


def restart(iterator: Any) -> None:
    """Make an epoch iterator begin a new pass over its data with the next epoch.

    With `steps_per_epoch` Keras goes on with the iterator of the epoch before.
    """
    iterator._current_iterator = None


def compile_arguments(model: Any) -> dict[str, Any]:
    """Return the arguments of `compile` by name, as they were given."""
    config: Any = getattr(model, "_compile_config", None)
    return {} if config is None else dict(config.config)
