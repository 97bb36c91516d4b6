"""The calls of `fit` and `evaluate` in progress, with their arguments.

Keras does not tell callbacks which data a `fit` trains on, or who else is in the list. The wrapper
around `fit` (`trainer_wrapper.py`) does: it makes a `FitCall` and keeps it while Keras runs, for
each thread by itself. Calls nest: `fit` evaluates its validation data, and a callback may fit or
evaluate a model of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras

from distrib.data.resumable import ResumableDataset
from distrib.errors import ConfigurationError
from distrib.keras_compat import trainer


class FitCall:
    """One call of `model.fit`.

    Args:
        model: The model that is trained.
        arguments: All arguments of `fit` by name, those with defaults included.
        as_given: The same as the user has passed them, before data of other kinds became data that
            can be resumed. Defaults to `None`: nothing was changed.

    Attributes:
        model: As given.
        arguments: As given.
        as_given: As given.
        callbacks: The `FitCallbackList` of the call, which sets this itself.
    """

    def __init__(
        self,
        model: Any,
        arguments: Mapping[str, Any],
        as_given: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.arguments = arguments
        self.as_given = arguments if as_given is None else as_given
        self._iterator: Any = None
        self._fingerprints: dict[int, dict[str, Any]] = {}
        self.callbacks: Any = None

    @property
    def has_iterator(self) -> bool:
        """Whether Keras has made the iterator over the training data."""
        return self._iterator is not None

    @property
    def iterator(self) -> Any:
        """Keras's `EpochIterator` over the training data.

        Raises:
            ConfigurationError: If Keras has begun to train and not announced it.
        """
        if self._iterator is None:
            raise ConfigurationError(
                f"Keras {keras.__version__} calls `fit` in a way that distrib does not know; "
                "install a version from the range in distrib's requirements."
            )
        return self._iterator

    @iterator.setter
    def iterator(self, iterator: Any) -> None:
        self._iterator = iterator

    @property
    def data(self) -> Any:
        """The training data: as given, or what `fit_arguments` has made of them."""
        return self.arguments["x"]

    @property
    def dataset(self) -> ResumableDataset | None:
        """The training data if it can be resumed in the middle of an epoch."""
        return self.data if isinstance(self.data, ResumableDataset) else None

    def fingerprint_of(self, dataset: ResumableDataset) -> dict[str, Any]:
        """Return the fingerprint of data of this `fit`; arrays are read once, however large."""
        if id(dataset) not in self._fingerprints:
            self._fingerprints[id(dataset)] = dataset.fingerprint()
        return dict(self._fingerprints[id(dataset)])

    @property
    def within_epochs(self) -> bool:
        """Whether a run can be saved, and go on, in the middle of an epoch."""
        return self.dataset is not None and self.dataset.within_epochs

    @property
    def validation_dataset(self) -> ResumableDataset | None:
        """The validation data if they have a position or a state."""
        given = self.arguments["validation_data"]
        x = None if given is None else keras.utils.unpack_x_y_sample_weight(given)[0]
        return x if isinstance(x, ResumableDataset) else None

    @property
    def initial_epoch(self) -> int:
        """As given."""
        return int(self.arguments["initial_epoch"])

    @property
    def epochs(self) -> int:
        """As given, or fewer if Keras is configured to limit them."""
        epochs, limit = int(self.arguments["epochs"]), keras.config.max_epochs()
        return min(epochs, limit) if limit else epochs

    @property
    def steps_per_epoch(self) -> int | None:
        """As given, or fewer if Keras is configured to limit them."""
        steps: int | None = self.iterator.steps_per_epoch
        return steps

    @property
    def batches(self) -> int | None:
        """Batches in an epoch of this fit; `None` if unknown."""
        if self.dataset is None:
            return self.steps_per_epoch
        return self.steps_per_epoch or self.dataset.num_batches

    @property
    def element_spec(self) -> Any:
        """Structure of the training batches as the train step gets them."""
        return trainer.element_spec_of(self.iterator)

    def begin_new_pass(self) -> None:
        """Make the next epoch begin a new pass over the data, unless they are endless.

        With `steps_per_epoch` Keras reuses the iterator of the previous epoch, which is exhausted
        if that epoch was resumed.
        """
        if self.dataset is not None and not self.dataset.endless:
            trainer.restart(self.iterator)


@dataclass(frozen=True)
class EvaluateCall:
    """One call of `model.evaluate`.

    Attributes:
        model: The model that is evaluated.
        data: `x`, as given.
        in_fit: Whether it is the validation of a `fit`.
    """

    model: Any
    data: Any
    in_fit: bool


_calls: ContextVar[tuple[FitCall | EvaluateCall, ...]] = ContextVar("distrib_calls", default=())


@contextmanager
def in_progress(call: FitCall | EvaluateCall) -> Iterator[None]:
    """Have `call_of` find a call while the block runs."""
    token = _calls.set((*_calls.get(), call))
    try:
        yield
    finally:
        _calls.reset(token)


def call_of(model: Any) -> FitCall | EvaluateCall | None:
    """Return the innermost call of a model in this thread; `None` if there is none."""
    return next((call for call in reversed(_calls.get()) if call.model is model), None)


def fit_of(model: Any) -> FitCall | None:
    """Return the `fit` of a model that is in progress in this thread; `None` if there is none."""
    fits = (call for call in reversed(_calls.get()) if isinstance(call, FitCall))
    return next((call for call in fits if call.model is model), None)
