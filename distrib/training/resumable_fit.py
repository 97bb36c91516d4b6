"""What happens around Keras's own loop so that plain `model.fit` resumes exactly.

Keras calls callbacks through one `CallbackList`. `ResumableCallbackList` takes its place, so the
order of the user's list does not matter: state is restored after every callback's `on_train_begin`,
and saved after every callback has handled a step or an epoch. It also changes the loop where a run
goes on in the middle of an epoch:

- Batch numbers continue from the resumed step.
- The resumed epoch has fewer batches than Keras expects. Its iterator must not run out inside the
  train function (the failing step would still advance the dropout seeds), so the epoch is ended
  after its last batch by `stop_training`, which is put back before anything can see it.
- When all batches were done and only the validation is missing, one call of the train function is
  replaced by one that does nothing, because Keras's loop cannot be entered without a batch.
"""

from __future__ import annotations

from typing import Any, Literal

import keras

from distrib.errors import ConfigurationError
from distrib.heartbeat import STARTING, TRAINING, heartbeat
from distrib.keras_compat.trainer import call_hooks_synchronously, set_initial_epoch
from distrib.training.callback_list import FitCallbackList, flat_callbacks
from distrib.training.fit_call import FitCall, fit_of
from distrib.training.fit_session import FitSession


class RunSaver(keras.callbacks.Callback):
    """Base of `BackupAndRestore`: a marker. `ResumableCallbackList` does the saving.

    Attributes:
        resume: What to do where the state of the data cannot be saved; see `BackupAndRestore`.
    """

    resume: Literal["replay", "epoch"] = "replay"

    def _new_session(self) -> FitSession:
        """Return what saves and resumes one `fit`, as this callback's arguments say."""
        raise NotImplementedError

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuse to train where nothing would be saved."""
        call = fit_of(self.model)
        if call is None or self not in savers_in(call.arguments["callbacks"]):
            raise ConfigurationError(
                f"{type(self).__name__} works in `model.fit` only; a training loop of your own can "
                "save and restore with Orbax itself. (Inside `fit` this means that something, such "
                "as an experiment tracker, has patched `keras.Model.fit` before distrib was "
                "imported: import distrib.callbacks first.)"
            )


def savers_in(callbacks: Any) -> list[RunSaver]:
    """Return the callbacks that ask for a `fit` to be saved."""
    return [each for each in flat_callbacks(callbacks) if isinstance(each, RunSaver)]


class ResumableCallbackList(FitCallbackList):
    """A callback list that saves and restores at the right moments of a `fit`.

    Args:
        call: The `fit`; one `RunSaver` is among its callbacks.

    Raises:
        ConfigurationError: If there are two.
    """

    def __init__(self, call: FitCall) -> None:
        super().__init__(call)
        saver, *others = savers_in(call.arguments["callbacks"])
        if others:
            raise ConfigurationError(
                "The callback list holds two BackupAndRestore; one saves the state of all the "
                "others."
            )
        self._session = saver._new_session()
        # Batches of the epoch in progress that an earlier process did.
        self._offset = 0
        self._skip_training = False
        self._forced_stop = False
        self._stop_training_before = False
        self._train_function: Any = None

    def open(self, steps: int | None) -> None:
        """See `FitCallbackList`."""
        super().open(steps)
        call_hooks_synchronously(self)  # A snapshot needs all callbacks to have seen the batch.

    def fit_ended(self) -> None:
        """Restore signal handlers and model, also if the `fit` has raised."""
        self._session.close()
        set_initial_epoch(self._call.model, None)
        super().fit_ended()

    def on_train_begin(self, logs: Any = None) -> None:
        """Find and check the checkpoint, begin, then restore it or save the first one."""
        heartbeat.enter(STARTING)
        self._session.prepare(self._call)
        super().on_train_begin(logs)
        self._session.begin(self.callbacks)

    def on_train_end(self, logs: Any = None) -> None:
        """End the callbacks, then the saving."""
        if not self._session.active:
            super().on_train_end(logs)
            return
        super().on_train_end(logs or self._session.logs.epoch)
        self._session.end()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set the data's position, begin the epoch, and restore what that has changed."""
        if self._session.active:
            self._offset = self._session.batch
            self._skip_training = self._session.train_done
            self._session.before_epoch(epoch)
        super().on_epoch_begin(epoch, logs)
        if self._session.active:
            self._session.epoch_began()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Number the batch from the epoch's real beginning."""
        if self._skip_training:
            self._train_function = self.model.train_function
            self.model.train_function = lambda iterator: self._session.logs.batch
            return
        if self._session.active:
            self._session.before_batch(batch + self._offset)
        super().on_train_batch_begin(batch + self._offset, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """End the batch, save if it is time, and end a resumed epoch at its last batch."""
        if self._skip_training:
            self._skip_training = False
            self.model.train_function = self._train_function
            self._force_stop(self._session.stop_requested)
            return
        batch += self._offset
        super().on_train_batch_end(batch, logs)
        if self._session.active:
            self._session.after_batch(batch, self._batch_logs)
            heartbeat.enter(TRAINING)
            # Keras learns the length of an epoch from data that run out in the train function.
            ends_here = self._offset or self._call.iterator.num_batches is None
            if ends_here and self._session.train_done:
                self._force_stop(self.model.stop_training)

    def on_test_begin(self, logs: Any = None) -> None:
        """Remember what validation changes before it does."""
        self._release_stop()
        self.end_training_data()  # Which is part of what is remembered.
        if self._session.active:
            self._session.before_validation()
        super().on_test_begin(logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Leave the validation early if the process was asked to stop."""
        super().on_test_batch_end(batch, logs)
        heartbeat.beat()
        if self._session.active and self._session.exit_requested:
            self.model.stop_evaluating = True

    def on_test_end(self, logs: Any = None) -> None:
        """End the validation, and the process if it was asked to stop."""
        super().on_test_end(logs)
        if self._session.active:
            self._session.after_validation()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """End the epoch, then save if it is time."""
        self._release_stop()
        super().on_epoch_end(epoch, logs)
        self._offset = 0
        if self._session.active:
            self._session.after_epoch(epoch, logs)

    def _force_stop(self, stop_of_others: bool) -> None:
        self._stop_training_before = stop_of_others
        self._forced_stop = True
        self.model.stop_training = True

    def _release_stop(self) -> None:
        if self._forced_stop:
            self._forced_stop = False
            self.model.stop_training = self._stop_training_before
