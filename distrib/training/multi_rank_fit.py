"""What must happen around Keras's own loop when several processes train one model.

Keras's `fit` knows of one process. Here it is taught about ranks where it can be without changing
the script: its `CallbackList` begins every training with the chief's state, lets no rank stop
alone, and shows callbacks the same logs on all ranks; the method that computes the results of an
epoch asks all ranks (`metrics.py`). `install` puts both in place, for the whole process, when
`distrib.init` finds that there are other ranks.

A callback on one rank that sets `model.stop_training` after a batch is heard with the gradients of
the next one (`step_payload.py`), so all ranks stop one batch later; at the end of an epoch all are
asked at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
from keras.src import callbacks as keras_callbacks
from keras.src.trainers.trainer import Trainer
from keras.src.utils.python_utils import pythonify_logs

from distrib.cluster import current
from distrib.data.dataset import Dataset
from distrib.errors import ConfigurationError, LostPeerError
from distrib.gradients.optimizer import reduce_outside_of_loss_scaling, reduction_of
from distrib.gradients.step_payload import Request
from distrib.heartbeat import OUTSIDE, STARTING, TRAINING, heartbeat
from distrib.state.build import build
from distrib.state.global_metrics import global_result
from distrib.state.training_state import TrainingState
from distrib.state.variables import optimizers_of, replicas_of, statistics_of
from distrib.training.fit_call import FitCall, fit_in_progress

_WRITERS = ("BackupAndRestore", "CSVLogger", "ModelCheckpoint", "TensorBoard")


def install() -> None:
    """Replace what Keras's trainer uses; see the module's text."""
    keras_callbacks.CallbackList = MultiRankCallbackList
    Trainer._get_metrics_result_or_logs = _agreed_logs
    Trainer._resolve_auto_jit_compile = _no_xla


class MultiRankCallbackList(keras.callbacks.CallbackList):
    """A `CallbackList` whose ranks act as one."""

    def __init__(
        self,
        callbacks: Any = None,
        add_history: bool = False,
        add_progbar: bool = False,
        model: Any = None,
        **params: Any,
    ) -> None:
        self._cluster = current()
        if not self._cluster.is_chief:
            add_progbar = False
            params["verbose"] = 0
        self._epoch = 0
        # Batches of the epoch that are done; `None` before the first one begins.
        self._done: int | None = None
        super().__init__(callbacks, add_history, add_progbar, model, **params)

    def set_model(self, model: Any) -> None:
        """Refuse what cannot work on several ranks, before anything is built."""
        super().set_model(model)
        call = fit_in_progress()
        if model is not None and call is not None:
            self._call = call
            reduce_outside_of_loss_scaling(model.optimizer)
            _check(model, call, self.callbacks)

    def on_train_begin(self, logs: Any = None) -> None:
        """Give all ranks the chief's state."""
        heartbeat.enter(STARTING)
        model = self.model
        _check_steps(self._call)
        if not model.built or (model.optimizer is not None and not model.optimizer.built):
            build(model, self._call.element_spec)
        # Gradients that are reduced only now and then would bring the loss of some steps only.
        accumulates = getattr(model.optimizer, "gradient_accumulation_steps", None)
        self._cluster.step_payload.loss_tracker = None if accumulates else model._loss_tracker
        super().on_train_begin(logs)
        TrainingState(model).synchronize()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin the epoch with the chief's learning rate."""
        self._epoch, self._done = epoch, None
        super().on_epoch_begin(epoch, logs)
        self._agree(stop=False)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Weigh the rank's piece of the batch."""
        self._done = batch
        self._cluster.step_payload.set_share(self._share(batch))
        super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Show the global loss, and stop if a rank had wished so before the batch."""
        self._done = batch + 1
        step_payload = self._cluster.step_payload
        loss = step_payload.read()
        if loss is not None and logs and "loss" in logs:
            logs = {**logs, "loss": loss}
        super().on_train_batch_end(batch, logs)
        if self.model.stop_training:
            step_payload.request(Request.STOP, True)
        self.model.stop_training = Request.STOP in step_payload.agreed
        if heartbeat.due:
            heartbeat.note(wait_seconds=float(step_payload.wait_seconds.numpy()))
        heartbeat.enter(TRAINING)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Show a sign of life."""
        super().on_test_batch_end(batch, logs)
        heartbeat.beat()

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Show a sign of life."""
        super().on_predict_batch_end(batch, logs)
        heartbeat.beat()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Show the chief's logs, then stop, and set the learning rate, on all ranks or none."""
        step_payload = self._cluster.step_payload
        super().on_epoch_end(epoch, self._cluster.collectives.broadcast(pythonify_logs(logs)))
        stop = self.model.stop_training or step_payload.is_requested(Request.STOP)
        self.model.stop_training = self._agree(stop)
        step_payload.request(Request.STOP, False)

    def on_train_end(self, logs: Any = None) -> None:
        """Weigh what is trained without `fit` afterwards as whole batches."""
        super().on_train_end(logs)
        self._cluster.step_payload.set_share(1.0)
        heartbeat.enter(OUTSIDE)

    def check_data_lasted(self) -> None:
        """Check, after the last batch, that this rank's data had all batches of the epoch.

        Raises:
            ConfigurationError: If not: the others are waiting for a step that it cannot make.
        """
        steps = self.params["steps"]
        if self._done is not None and self._done < steps and not self.model.stop_training:
            raise ConfigurationError(
                f"Rank {self._cluster.rank} ran out of data in epoch {self._epoch + 1} after "
                f"{self._done} of {steps} batches, and the other ranks would wait for it. Train on "
                "`cluster.dataset(...)`, or give every rank data for `steps_per_epoch * epochs` "
                "batches, for example by `.repeat()`."
            )

    def _share(self, batch: int) -> float:
        """Weight of this rank's losses in the batches that one execution trains."""
        dataset = self._call.dataset
        if dataset is None:
            return 1.0
        first = batch + self._epoch * (self._call.batches or 0) if dataset.endless else batch
        steps = range(first, first + self.model.steps_per_execution)
        shares = {dataset.share(step % dataset.num_batches) for step in steps}
        # One execution has one weight; a batch that is cut unevenly counts as the others then.
        return shares.pop() if len(shares) == 1 else 1.0

    def _agree(self, stop: bool) -> bool:
        """Tell whether any rank wants to stop, and take over the chief's learning rate."""
        optimizer = self.model.optimizer
        rate = getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None)
        value = float(rate.numpy()) if isinstance(rate, keras.Variable) else 0.0
        mine = np.array([stop, value if self._cluster.is_chief else 0.0])
        stops, chiefs = self._cluster.collectives.allreduce(mine)
        if isinstance(rate, keras.Variable) and value != chiefs:
            rate.assign(chiefs)
        return bool(stops)


def _check(model: Any, call: FitCall, callbacks: list[Any]) -> None:
    """Refuse, before training, what would hang or go wrong without a word."""
    size = current().size
    if model.jit_compile and not model.run_eagerly:
        raise ConfigurationError(
            "`jit_compile=True`: XLA cannot compile what the ranks exchange in a train step. Leave "
            "`jit_compile` out of `model.compile`, and call `distrib.init()` before it."
        )
    if not any(reduction_of(optimizer) for optimizer in optimizers_of(model)):
        raise ConfigurationError(
            f"The optimizer of {model.name!r} does not reduce gradients, so the {size} ranks would "
            "train models of their own. Compile with `optimizer=cluster.optimizer(...)`."
        )
    if call.dataset is not None and not call.dataset.every_rank_has_examples:
        raise ConfigurationError(
            f"The last batch of an epoch has fewer examples than there are ranks ({size}). Pass "
            "`drop_remainder=True` or `shuffle=True` to `cluster.dataset`, or another `batch_size`."
        )
    for callback in callbacks:
        kind = type(callback)
        if kind.__module__.startswith("keras.") and kind.__name__ in _WRITERS:
            raise ConfigurationError(
                f"keras.callbacks.{kind.__name__} would write the same files on all {size} ranks; "
                f"import {kind.__name__} from distrib.callbacks, which takes the same arguments."
            )
    for layer in model._flatten_layers():
        if getattr(layer, "synchronized", False) and current().kind == "horovod":
            warnings.warn(
                f"{layer.name!r}: `synchronized=True` works under tf.distribute only; here each "
                "rank normalizes its own piece of the batch.",
                stacklevel=2,
            )


def _check_steps(call: FitCall) -> None:
    """Refuse data of which ranks have, or may have, different numbers of batches."""
    steps = call.iterator.num_batches
    everybody = current().collectives.allgather(steps if steps and steps > 0 else None)
    if None in everybody:
        raise ConfigurationError(
            f"It is not known how many batches {type(call.data).__name__} has, and a rank with "
            "fewer than the others would leave them waiting. Pass `steps_per_epoch`, or train on "
            "`cluster.dataset(...)`."
        )
    if len(set(everybody)) > 1:
        raise ConfigurationError(
            f"The ranks have {everybody} batches in an epoch, and those with fewer would leave the "
            "others waiting. Train on `cluster.dataset(...)`, or pass a `steps_per_epoch` that all "
            "of them have."
        )


_own_logs = Trainer._get_metrics_result_or_logs


def _agreed_logs(model: Any, logs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the results over all ranks' data if all ranks are sharing the work."""
    caller = sys._getframe(1).f_locals
    # Every rank takes part in `fit` and in its validation. An `evaluate` on its own may be the
    # chief's, unless its data is a dataset of which each rank has a piece.
    in_fit = caller.get("use_cached_eval_dataset", True)
    if not in_fit and not isinstance(caller["x"], Dataset):
        return _own_logs(model, logs)
    if isinstance(caller["callbacks"], MultiRankCallbackList):
        caller["callbacks"].check_data_lasted()
    with nullcontext() if in_fit else _explaining_evaluate():
        _average_statistics(model)
        results, all_logs = global_result(model, logs, current().collectives)
    # A train step of the user's may report other things than its metrics.
    return results if sorted(all_logs[0]) == sorted(results) else logs


@contextmanager
def _explaining_evaluate() -> Iterator[None]:
    """Name the mistake that looks like a lost peer: the chief evaluates, the others have ended."""
    try:
        yield
    except LostPeerError as error:
        raise LostPeerError(
            f"{error} This was in `model.evaluate` of a cluster.dataset, which all ranks have to "
            "call; if only the chief does, give it arrays."
        ) from error


def _average_statistics(model: Any) -> None:
    """Make the statistics of batch normalization one model's again.

    Each rank's are of its own pieces. Averaged, validation and whatever is saved do not depend on
    which rank does it. In float64, so that what is equal already stays as it is.
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


def _no_xla(model: Any) -> bool:
    """Answer for Keras's `jit_compile="auto"`, which may choose XLA on a GPU."""
    return False
