"""The callback list that replaces Keras's in a `fit` that saves checkpoints or has several ranks.

Keras's `fit` makes its `CallbackList` after the iterator over the data, and takes one that it is
given instead. This one is made before Keras runs, so it has to be opened when the iterator, and
with it the number of steps, is there.
"""

from __future__ import annotations

from typing import Any

import keras

from distrib.heartbeat import OUTSIDE, heartbeat
from distrib.training.fit_call import FitCall


def flat_callbacks(callbacks: Any) -> list[Any]:
    """Return the callbacks in what a user passes to `fit`: nested lists, or a `CallbackList`."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return keras.tree.flatten(callbacks) if callbacks else []


class FitCallbackList(keras.callbacks.CallbackList):
    """Base of the lists that save checkpoints or synchronize ranks; a `fit` may need both.

    Args:
        call: The `fit`.
    """

    def __init__(self, call: FitCall) -> None:
        # Not Keras's own `__init__`, which calls `set_model` of all callbacks: see `open`.
        self._call = call
        self._batch_logs: Any = None
        self._epoch_of_data = 0
        call.callbacks = self

    def open(self, steps: int | None) -> None:
        """Run Keras's own `__init__`, now that the number of steps is known.

        Args:
            steps: In an epoch; `None` if that is not known.
        """
        given, verbose = self._call.arguments["callbacks"], self._call.arguments["verbose"]
        if isinstance(given, keras.callbacks.CallbackList):
            # Its class is one of our bases. Whoever holds it sees what we set, and is seen.
            vars(given).update(self.__dict__)
            self.__dict__ = vars(given)
            self._add_history()
            return
        keras.callbacks.CallbackList.__init__(
            self,
            given,
            add_history=True,
            add_progbar=verbose != 0,
            model=self._call.model,
            verbose=verbose,
            epochs=self._call.epochs,
            steps=steps,
        )

    def _add_history(self) -> None:
        """Give the model the `History` that its checkpoints hold, and that `fit` returns."""
        found = [each for each in self.callbacks if isinstance(each, keras.callbacks.History)]
        if not found:  # A list of the user's own, made without `add_history=True`.
            found = [keras.callbacks.History()]
            self.callbacks.append(found[0])
            found[0].set_model(self._call.model)
        self._call.model.history = found[0]

    def on_train_begin(self, logs: Any = None) -> None:
        """Prepare the data, then begin the callbacks."""
        for data in (self._call.dataset, self._call.validation_dataset):
            if data is not None:
                data.begin_fit()
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin the epoch, then that of the data, as Keras does."""
        super().on_epoch_begin(epoch, logs)
        self._epoch_of_data = epoch
        if self._call.dataset is not None:
            self._call.dataset.begin_epoch(epoch)

    def end_training_data(self) -> None:
        """End the epoch of the training data, before anything sees that its last batch is done.

        Keras does so after the last batch. It may be called again.
        """
        if self._call.dataset is not None:
            self._call.dataset.end_epoch()

    def on_test_begin(self, logs: Any = None) -> None:
        """Let the validation data begin an epoch of their own."""
        self.end_training_data()
        if self._call.validation_dataset is not None:
            self._call.validation_dataset.begin_epoch(self._epoch_of_data)
        super().on_test_begin(logs)

    def on_test_end(self, logs: Any = None) -> None:
        """End the epoch of the validation data."""
        if self._call.validation_dataset is not None:
            self._call.validation_dataset.end_epoch()
        super().on_test_end(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """End the epoch of the training data, then that of the callbacks."""
        self.end_training_data()
        super().on_epoch_end(epoch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Keep the logs that callbacks see: on several ranks, with the loss of all of them."""
        self._batch_logs = logs
        super().on_train_batch_end(batch, logs)

    def fit_ended(self) -> None:
        """Put back what the `fit` has changed in the process, however it ended."""
        heartbeat.enter(OUTSIDE)
