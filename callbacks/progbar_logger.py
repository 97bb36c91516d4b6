"""`ProgbarLogger` that measures time from the step at which this process began."""

from __future__ import annotations

from typing import Any

import keras

from .mixins import PrintsOnChief, StateInAttributes


class ProgbarLogger(StateInAttributes, PrintsOnChief, keras.callbacks.ProgbarLogger):
    """Show the progress bar.

    Keras's `ProgbarLogger`, shown on the chief only. If a run resumes in the middle of an epoch,
    the bar continues from the resumed step, and the time per step and the time left are computed
    from the steps of this process.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> bar = ProgbarLogger()
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), callbacks=[bar], verbose=0)
    """

    progbar: _Progbar | None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the first batch of this process in the epoch."""
        if self.seen == 0 and self.progbar is not None:
            self.progbar.steps_before = batch

    def _maybe_init_progbar(self) -> None:
        if self.progbar is None:
            self.progbar = _Progbar(
                target=self.target, verbose=self.verbose, unit_name="step", stateless_metrics=set()
            )


class _Progbar(keras.utils.Progbar):
    """A bar that starts after the steps of an earlier process."""

    steps_before = 0

    def _estimate_step_duration(self, current: int, now: float) -> float:
        return super()._estimate_step_duration(current - self.steps_before, now)
