"""What our callbacks share: their state is a few attributes, and only the chief speaks.

Both are mixins that stand before Keras's class in the list of bases, so that Keras's own code does
the work and these change what it reads and writes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from distrib.cluster import current


class Resumable:
    """Gives `get_state` and `set_state` to a callback whose state is the named attributes."""

    state_attributes: ClassVar[tuple[str, ...]] = ()

    def get_state(self) -> dict[str, Any]:
        """Return what the callback needs to continue after a restart.

        Returns:
            Attribute names to values: None, bool, int, float, str, arrays, and lists of these.
        """
        return {name: plain(getattr(self, name)) for name in self.state_attributes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned.

        Args:
            state: What `get_state` returned.
        """
        for name in self.state_attributes:
            setattr(self, name, plain(state[name]))


def plain(value: Any) -> Any:
    """Return `value` as checkpoints take it; containers are copied.

    Arrays are handed on uncopied, because Keras's callbacks replace arrays and never write into
    them, and the best weights are as large as the model. What Keras was given by hand, such as a
    tensor or a numpy scalar, becomes an array of the same dtype, and so compares the same.
    """
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, np.ndarray):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return np.asarray(value)


class ChiefSpeaks:
    """Makes `verbose` read as 0 on all processes but the chief; Keras prints where it is above."""

    _verbose: Any = 0

    @property
    def verbose(self) -> Any:
        """Verbosity on this process."""
        return self._verbose if current().is_chief else 0

    @verbose.setter
    def verbose(self, value: Any) -> None:
        self._verbose = value
