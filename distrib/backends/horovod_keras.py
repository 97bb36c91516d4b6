"""What scripts still use of Horovod's own Keras API, and what takes its place.

`horovod.keras` and `horovod.tensorflow.keras` (0.28.1, the newest release) were written for Keras 2
(horovod issue 4290). With Keras 3 most of it fails in the middle of Horovod's code, for example
with `'list' object is not callable`. A script that still uses it is told what to delete.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable
from typing import Any

from distrib.errors import ConfigurationError

_SEE = 'docs/horovod.md ("From a Horovod script") lists what takes the place of what.'
_INSTEAD = {
    "BroadcastGlobalVariablesCallback": "delete it: `fit` begins with the chief's weights",
    "MetricAverageCallback": "delete it: metrics cover the data of all ranks",
    "LearningRateWarmupCallback": "use distrib.callbacks.LearningRateWarmup",
    "LearningRateScheduleCallback": "use keras.callbacks.LearningRateScheduler",
    "BestModelCheckpoint": "use distrib.callbacks.ModelCheckpoint(save_best_only=True)",
    "CommitStateCallback": "use distrib.callbacks.BackupAndRestore",
    "UpdateBatchStateCallback": "use distrib.callbacks.BackupAndRestore",
    "UpdateEpochStateCallback": "use distrib.callbacks.BackupAndRestore",
}
_ERRORS = (AttributeError, RuntimeError, TypeError, ValueError)
_HOROVOD = f"{os.sep}horovod{os.sep}"
_CALL = re.compile(r"\bhvd\.(broadcast|callbacks|elastic|Distributed|SyncBatch)")


def is_horovods(thing: Any) -> bool:
    """Tell whether an optimizer or a callback is Horovod's, or derived from one."""
    return any(kind.__module__.partition(".")[0] == "horovod" for kind in type(thing).__mro__)


def refuse_horovods(optimizers: Iterable[Any], callbacks: Iterable[Any] = ()) -> None:
    """Refuse parts of Horovod's Keras API.

    Args:
        optimizers: Those that train a model.
        callbacks: Of a `fit`. Defaults to none.

    Raises:
        ConfigurationError: Says what takes the place of each.
    """
    found = [
        f"`hvd.DistributedOptimizer`: write `cluster.optimizer(keras.optimizers.{name}(...))`"
        for name in dict.fromkeys(type(each).__name__ for each in optimizers if is_horovods(each))
    ]
    kinds = (kind for each in callbacks if is_horovods(each) for kind in type(each).__mro__)
    for name in dict.fromkeys(kind.__name__ for kind in kinds):
        if name in _INSTEAD:
            found.append(f"`{name}`: {_INSTEAD[name]}")
    if found:
        raise ConfigurationError(
            f"Horovod's own Keras API does not work with Keras 3. {'; '.join(found)}. {_SEE}"
        )


def explain(error: BaseException) -> BaseException:
    """Return a `ConfigurationError` for an exception of Horovod's Keras API, else `error`."""
    text = str(error)
    if isinstance(error, ValueError) and "Horovod has not been initialized" in text:
        return ConfigurationError(
            "`hvd.shutdown()` ended Horovod before the script was done with it. Delete the call: "
            "distrib ends Horovod with the process."
        )
    if isinstance(error, RuntimeError) and "cannot be modified after being initialized" in text:
        return ConfigurationError(
            "`distrib.init()` has given this rank its GPU already, with memory growth. Delete the "
            "lines that call `tf.config` for GPUs."
        )
    if isinstance(error, _ERRORS) and _is_from_horovod(error):
        return ConfigurationError(
            "Horovod's functions for models and optimizers do not work with Keras 3. distrib "
            f"broadcasts weights and averages gradients itself: delete the call. {_SEE}"
        )
    return error


def _is_from_horovod(error: BaseException) -> bool:
    """Tell whether an exception comes out of Horovod, or is about an argument for it."""
    frames = traceback.extract_tb(error.__traceback__)
    # Not the frames around the user's code, such as those of `hvd.elastic.run`.
    library: list[str] = []
    for frame in frames:
        library = [*library, frame.filename] if _is_library(frame.filename) else []
    # `hvd.broadcast_variables(optimizer.variables())`: a method in Keras 2, a property in Keras 3.
    is_for_horovod = bool(frames) and _CALL.search(frames[-1].line or "") is not None
    return is_for_horovod or any(_HOROVOD in filename for filename in library)


def _is_library(filename: str) -> bool:
    return any(part in filename for part in ("-packages", "__autograph_generated"))
