"""Mixins of the callbacks: state that is a few attributes, and messages on the chief only.

Each stands before Keras's class in the list of bases: Keras's code does the work, and the mixin
changes what that code reads and writes.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import keras
import numpy as np

from distrib.cluster import current


class StateInAttributes:
    """Gives `get_state` and `set_state` to a callback whose state is the named attributes."""

    _state_attributes: ClassVar[tuple[str, ...]] = ()

    def get_state(self) -> dict[str, Any]:
        """Return what the callback needs to continue after a restart.

        Returns:
            Attribute names to values: None, bool, int, float, str, arrays, and lists of these.
        """
        return {name: to_state_value(getattr(self, name)) for name in self._state_attributes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned.

        Args:
            state: What `get_state` returned.
        """
        for name in self._state_attributes:
            setattr(self, name, to_state_value(state[name]))


def to_state_value(value: Any) -> Any:
    """Convert an attribute to what a checkpoint can hold; lists are copied.

    Arrays are not copied: Keras's callbacks replace arrays and never write into them, and the best
    weights are as large as the model. Anything else, such as a tensor or a numpy scalar that the
    user passed to Keras, becomes an array of the same dtype, which compares the same.
    """
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, np.ndarray):
        return value
    if isinstance(value, (list, tuple)):
        return [to_state_value(item) for item in value]
    return np.asarray(value)


class PrintsOnChief:
    """Makes `verbose` read as 0 on all processes but the chief; Keras prints if it is above 0."""

    _verbose: Any = 0

    @property
    def verbose(self) -> Any:
        """Verbosity on this process."""
        return self._verbose if current().is_chief else 0

    @verbose.setter
    def verbose(self, value: Any) -> None:
        self._verbose = value


def print_message(message: str) -> None:
    """Print a message where Keras prints its own.

    That is standard output, or the log of absl after `keras.config.disable_interactive_logging()`.
    """
    if keras.config.is_interactive_logging_enabled():
        try:
            print(message, flush=True)
        except UnicodeEncodeError:  # A path that the terminal's encoding lacks characters for.
            print(message.encode("ascii", "backslashreplace").decode(), flush=True)
    else:
        logging.getLogger("absl").info(message)
