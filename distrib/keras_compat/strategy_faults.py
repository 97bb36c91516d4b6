"""Workarounds for bugs of Keras under `tf.distribute`.

Keras 3.12 to 3.15 has four:

1. `TensorFlowTrainer._maybe_symbolic_build`, which `fit` and `evaluate` call first, averages the
   first batch over the replicas to learn its shape. Under `MirroredStrategy` that raises when the
   batch does not split evenly; under `MultiWorkerMirroredStrategy` it always does (keras issue
   20585). It also reads that batch from the data for nothing. The dataset's `element_spec` holds
   the same shapes, so the build goes by that.
2. `steps_per_execution` above 1 fails on every model ("You must feed a value for placeholder"):
   TensorFlow can run neither a conditional on the optional batches of a distributed iterator inside
   a loop, nor a collective in a function that is called there. One step at a time gives the same
   numbers, so that is what runs, after a warning.
3. `reduce_per_replica` takes the mean of what a step returns over all workers, along the first
   axis, which scalars do not have. It does so if `_collective_all_reduce_multi_worker` says that
   there are several. With one replica in each process there is nothing to reduce in that.
4. The same function gathers predictions from all workers, which waits for ever if only the chief
   predicts.

`tests/unit/backends/test_mirrored.py` and `tests/integration/test_multiworker.py` fail when Keras
fixes them.
"""

from __future__ import annotations

import warnings
from typing import Any

import keras
from keras.src.backend.tensorflow import trainer


def build_by_element_spec() -> None:
    """Work around the first two."""
    trainer.TensorFlowTrainer._maybe_symbolic_build = _build_by_element_spec


def keep_results_of_steps() -> None:
    """Work around the last two."""
    trainer._collective_all_reduce_multi_worker = lambda strategy: False


def _build_by_element_spec(model: Any, iterator: Any = None, data_batch: Any = None) -> None:
    """Build model, metrics and optimizer under the strategy without touching the data."""
    strategy = model._distribute_strategy
    if strategy is None:
        return
    if iterator is not None:
        if model.steps_per_execution > 1:
            _execute_single_steps(model, iterator)
        data_batch = iterator.data_adapter.get_tf_dataset().element_spec
    try:
        with strategy.scope():
            model._symbolic_build(data_batch=data_batch)
    except RuntimeError:
        # Keras calls the model, which one with a `train_step` of its own need not allow.
        if type(model).train_step is keras.Model.train_step:
            raise


def _execute_single_steps(model: Any, iterator: Any) -> None:
    warnings.warn(
        f"steps_per_execution={model.steps_per_execution} does not work under tf.distribute in "
        "this version of Keras; using 1, which computes the same.",
        stacklevel=4,
    )
    model.steps_per_execution = 1
    iterator.steps_per_execution = 1
