"""`LearningRateWarmup`: a linear warm-up for large global batches."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from distrib.cluster import current
from distrib.errors import ConfigurationError
from distrib.keras_compat.optimizers import learning_rate_of

from .mixins import PrintsOnChief, print_message


class LearningRateWarmup(PrintsOnChief, keras.callbacks.Callback):
    """Raise the learning rate linearly, batch by batch, over the first epochs.

    The gradual warm-up of Goyal et al. 2017, "Accurate, Large Minibatch SGD" (arXiv 1706.02677):
    with n replicas the global batch is n times as large and the learning rate is scaled by n, which
    makes the first epochs unstable. Batch t of the T warm-up batches is trained with
    `initial_lr + (target_lr - initial_lr) * t / T`. After the last of them the rate is `target_lr`,
    and other callbacks may change it.

    Args:
        warmup_epochs: Length of the warm-up in epochs, which may be a fraction. Defaults to `5`.
        initial_lr: Learning rate of the first batch. Defaults to `None`: `target_lr /
            num_replicas`, the rate of one replica, so a single replica has no warm-up.
        target_lr: Learning rate after the warm-up. Defaults to `None`: the optimizer's rate at the
            start of training, which you have scaled with the global batch.
        verbose: 1 prints a message when the warm-up is over, 0 does not. Defaults to `0`.

    Raises:
        ConfigurationError: If an argument is negative; when training begins, if the number of steps
            per epoch is unknown, or the optimizer follows a `LearningRateSchedule`.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.4), "mse")
    >>> warmup = LearningRateWarmup(warmup_epochs=2, initial_lr=0.0)
    >>> x, y = np.ones((8, 3)), np.ones(8)
    >>> history = model.fit(x, y, batch_size=2, epochs=3, callbacks=[warmup], verbose=0)
    >>> [round(rate, 6) for rate in history.history["learning_rate"]]
    [0.15, 0.4, 0.4]
    """

    # It sets the rate of every batch, and ranks take over the chief's between epochs only.
    on_every_rank: ClassVar[bool] = True

    def __init__(
        self,
        warmup_epochs: float = 5,
        initial_lr: float | None = None,
        target_lr: float | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("warmup_epochs", warmup_epochs),
            ("initial_lr", initial_lr),
            ("target_lr", target_lr),
        ):
            if value is not None and value < 0:
                raise ConfigurationError(f"`{name}={value}` must not be negative.")
        self.warmup_epochs = warmup_epochs
        self.initial_lr = initial_lr
        self.target_lr = target_lr
        self.verbose = verbose
        self._initial: list[float] = []
        self._target: list[float] = []
        self._warmup_steps = 0.0
        self._epoch = 0
        self._is_warming = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Determine the two rates and the length of the warm-up."""
        steps = self.params["steps"]
        if steps is None:
            raise ConfigurationError(
                "LearningRateWarmup needs the number of steps per epoch, which is unknown for this "
                "data. Pass `steps_per_epoch` to fit(), or a dataset of known length."
            )
        self._warmup_steps = self.warmup_epochs * steps
        self._is_warming = False
        self._initial, self._target = [], []
        for optimizer in self._optimizers():
            _refuse_schedule(optimizer)
            target = _rate(optimizer) if self.target_lr is None else float(self.target_lr)
            one_replica = target / current().num_replicas
            self._initial.append(one_replica if self.initial_lr is None else self.initial_lr)
            self._target.append(target)
        if self.target_lr is not None and not self._has_ramp():
            self._set(1.0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of this batch."""
        step = self._step(batch)
        if step < self._warmup_steps and self._has_ramp():
            self._is_warming = True
            self._set(step / self._warmup_steps)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the target after the last batch of the warm-up.

        Not at the end of the epoch, where another callback may set the next rate.
        """
        if self._is_warming and self._step(batch) + 1 >= self._warmup_steps:
            self._is_warming = False
            self._set(1.0)
            if self.verbose > 0:
                print_message(
                    f"\nEpoch {self._epoch + 1}: LearningRateWarmup finished, "
                    f"learning rate is {', '.join(map(str, self._target))}."
                )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Put the learning rate into `logs`, under the names that Keras's schedulers use."""
        if logs is None:
            return
        several = hasattr(self.model.optimizer, "optimizers")
        for optimizer in self._optimizers():
            name = f"learning_rate_{optimizer.name}" if several else "learning_rate"
            logs[name] = _rate(optimizer)

    def get_state(self) -> dict[str, Any]:
        """Return the first and the last rate of the warm-up, for every optimizer."""
        return {"initial": list(self._initial), "target": list(self._target)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self._initial = list(state["initial"])
        self._target = list(state["target"])

    def _optimizers(self) -> list[Any]:
        """Return the parts of a `MultiOptimizer`, or the one optimizer."""
        optimizer = self.model.optimizer
        return list(getattr(optimizer, "optimizers", [optimizer]))

    def _has_ramp(self) -> bool:
        return self._warmup_steps > 0 and self._initial != self._target

    def _step(self, batch: int) -> int:
        return int(self._epoch * self.params["steps"] + batch)

    def _set(self, progress: float) -> None:
        rates = zip(self._optimizers(), self._initial, self._target, strict=True)
        for optimizer, initial, target in rates:
            # The end is the target itself, which `initial + (target - initial)` may round.
            rate = target if progress == 1.0 else initial + (target - initial) * progress
            optimizer.learning_rate = rate


def _rate(optimizer: Any) -> float:
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def _refuse_schedule(optimizer: Any) -> None:
    schedule = learning_rate_of(optimizer)
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        raise ConfigurationError(
            "LearningRateWarmup sets the learning rate, but the optimizer computes it by a "
            f"{type(schedule).__name__}. Compile with a number, or remove this callback and use a "
            "schedule that has a warm-up of its own."
        )
