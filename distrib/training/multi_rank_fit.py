"""What happens around Keras's own loop so that several processes train one model.

Keras's `fit` knows of one process. `MultiRankCallbackList` begins every training with the chief's
state, lets no rank stop alone, and shows callbacks the same logs on all ranks. The results of an
epoch are computed over all ranks in `global_results.py`.

If a callback sets `model.stop_training` after a batch on one rank, the request is sent with the
gradients of the next batch (`gradients/step_payload.py`), so all ranks stop one batch later. At the
end of an epoch the ranks agree at once.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from distrib.cluster import current
from distrib.errors import ConfigurationError
from distrib.gradients.optimizer import reduce_outside_of_loss_scaling
from distrib.gradients.step_payload import Request
from distrib.heartbeat import STARTING, TRAINING, heartbeat
from distrib.keras_compat.logs import plain_logs
from distrib.keras_compat.optimizers import learning_rate_of
from distrib.keras_compat.trainer import loss_tracker_of
from distrib.state.build import build
from distrib.state.training_state import TrainingState
from distrib.training.callback_list import FitCallbackList
from distrib.training.fit_alike import check_fit_alike
from distrib.training.fit_call import FitCall
from distrib.training.fit_checks import check_ranks


class MultiRankCallbackList(FitCallbackList):
    """A callback list that keeps all ranks in step.

    Args:
        call: The `fit`.

    Raises:
        ConfigurationError: If the `fit` cannot work on several ranks; nothing is built yet.
    """

    def __init__(self, call: FitCall) -> None:
        super().__init__(call)
        self._cluster = current()
        self._epoch = 0
        # Batches of the epoch that are done; `None` before the first one begins.
        self._done: int | None = None
        # Batches of an epoch. Keras itself makes up a number when an epoch of unknown length ends.
        self._steps: int | None = None
        reduce_outside_of_loss_scaling(call.model.optimizer)
        check_ranks(call)

    def open(self, steps: int | None) -> None:
        """Refuse a `fit` that differs between ranks, before any other collective hangs on it."""
        heartbeat.enter(STARTING)
        check_fit_alike(self._call, steps)
        self._steps = steps
        super().open(steps)

    def on_train_begin(self, logs: Any = None) -> None:
        """Give all ranks the chief's state."""
        model = self.model
        if not model.built or (model.optimizer is not None and not model.optimizer.built):
            build(model, self._call.element_spec)
        # With gradient accumulation most steps carry no loss.
        accumulates = getattr(model.optimizer, "gradient_accumulation_steps", None)
        self._cluster.step_payload.loss_tracker = None if accumulates else loss_tracker_of(model)
        super().on_train_begin(logs)
        TrainingState(model).synchronize()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin the epoch with the chief's learning rate."""
        self._epoch, self._done = epoch, None
        super().on_epoch_begin(epoch, logs)
        self._agree_on_stop_and_learning_rate(stop=False)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Set the loss weight of this rank's shard of the batch."""
        if self._done is None:
            self._check_same_batches()
        self._done = batch
        self._cluster.step_payload.set_share(self._share(batch))
        super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Show the global loss, and stop if any rank requested it before the batch."""
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
        """Send a heartbeat."""
        super().on_test_batch_end(batch, logs)
        heartbeat.beat()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Pass the chief's logs to callbacks; agree on `stop_training` and the learning rate."""
        step_payload = self._cluster.step_payload
        super().on_epoch_end(epoch, self._cluster.collectives.broadcast(plain_logs(logs)))
        stop = self.model.stop_training or step_payload.is_requested(Request.STOP)
        self.model.stop_training = self._agree_on_stop_and_learning_rate(stop)
        step_payload.request(Request.STOP, False)

    def fit_ended(self) -> None:
        """Reset the loss weight to 1, for training loops without `fit`."""
        self._cluster.step_payload.set_share(1.0)
        super().fit_ended()

    def check_data_lasted(self) -> None:
        """Check, after the last batch, that this rank's data had all batches of the epoch.

        Raises:
            ConfigurationError: If not: the others are waiting for a step that it cannot make.
        """
        steps = self._steps
        if steps is None:
            return
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
        if dataset.num_batches is None:  # It knows the batch that comes next.
            return dataset.share(batch)
        first = batch + self._epoch * (self._call.batches or 0) if dataset.endless else batch
        steps = range(first, first + self.model.steps_per_execution)
        shares = {dataset.share(step % dataset.num_batches) for step in steps}
        # One execution has one weight: 1 if the shares of its batches differ.
        return shares.pop() if len(shares) == 1 else 1.0

    def _check_same_batches(self) -> None:
        """Refuse to train on rows of batches that differ between the ranks."""
        dataset = self._call.dataset
        if dataset is None or not dataset.is_shared:
            return
        if len(set(self._cluster.collectives.allgather(dataset.digest()))) > 1:
            raise ConfigurationError(
                "The ranks' `tf.data` pipelines yield different batches, and each rank would train "
                "on its rows of its own. Give all ranks the same data and seeds "
                "(`keras.utils.set_random_seed`); or, if each has its own shard, set the option "
                "`experimental_distribute.auto_shard_policy` to `AutoShardPolicy.OFF`."
            )

    def _agree_on_stop_and_learning_rate(self, stop: bool) -> bool:
        """Tell whether any rank wants to stop, and take over the chief's learning rate."""
        rate = learning_rate_of(self.model.optimizer)
        value = float(rate.numpy()) if isinstance(rate, keras.Variable) else 0.0
        mine = np.array([stop, value if self._cluster.is_chief else 0.0])
        stops, chiefs = self._cluster.collectives.allreduce(mine)
        if isinstance(rate, keras.Variable) and value != chiefs:
            rate.assign(chiefs)
        return bool(stops)
