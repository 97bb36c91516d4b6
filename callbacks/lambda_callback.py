"""`LambdaCallback` whose functions may keep state."""

from __future__ import annotations

import keras

from .mixins import StateInAttributes


class LambdaCallback(StateInAttributes, keras.callbacks.LambdaCallback):
    """Make a callback of plain functions.

    Keras's `LambdaCallback`. The functions run on every process, because only you know whether they
    write or decide; check `distrib.current().is_chief` before writing. To save state of the
    functions in checkpoints, pass two more functions, `get_state` and `set_state`.

    Args:
        on_epoch_begin: Called with `(epoch, logs)`. Defaults to `None`.
        on_epoch_end: Called with `(epoch, logs)`. Defaults to `None`.
        on_train_begin: Called with `(logs)`. Defaults to `None`.
        on_train_end: Called with `(logs)`. Defaults to `None`.
        on_train_batch_begin: Called with `(batch, logs)`. Defaults to `None`.
        on_train_batch_end: Called with `(batch, logs)`. Defaults to `None`.
        **kwargs: Any other method of a callback, by name, such as `get_state` (no arguments,
            returns a dict) and `set_state` (takes that dict).

    Example:
    >>> seen = []
    >>> count = LambdaCallback(
    ...     on_epoch_end=lambda epoch, logs: seen.append(epoch),
    ...     get_state=lambda: {"seen": list(seen)},
    ...     set_state=lambda state: seen.__setitem__(slice(None), state["seen"]),
    ... )
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=2, callbacks=[count], verbose=0)
    >>> seen
    [0, 1]
    """
