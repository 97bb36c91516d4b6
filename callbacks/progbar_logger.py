"""`ProgbarLogger` that counts time from where this process began."""

from __future__ import annotations

from typing import Any

import keras

from .mixins import PrintsOnChief, StateInAttributes


class ProgbarLogger(StateInAttributes, PrintsOnChief, keras.callbacks.ProgbarLogger):
    """Show the progress bar.

    Keras's `ProgbarLogger`, which shows on the chief only. When a run resumes in the middle of an
    epoch the bar goes on from the resumed step, and the time per step and the time left are
    reckoned from the steps that this process has done.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> bar = ProgbarLogger()
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), callbacks=[bar], verbose=0)
    """

    progbar: _Progbar | None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the first batch that this process does in the epoch."""
        if self.seen == 0 and self.progbar is not None:
            self.progbar.steps_before = batch

    def _maybe_init_progbar(self) -> None:
        if self.progbar is None:
            self.progbar = _Progbar(
                target=self.target, verbose=self.verbose, unit_name="step", stateless_metrics=set()
            )


class _Progbar(keras.utils.Progbar):
    """A bar some of whose steps were done before it was made."""

    steps_before = 0

    def _estimate_step_duration(self, current: int, now: float) -> float:
        return super()._estimate_step_duration(current - self.steps_before, now)
