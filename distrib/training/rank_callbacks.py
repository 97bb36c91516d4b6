"""Which callbacks may be in the lists of some ranks only.

Scripts written for Horovod add callbacks on the chief: `if rank == 0: callbacks.append(...)`. That
is right for a callback that logs, prints or writes. A callback that decides to stop, or sets the
learning rate between epochs, may be the chief's alone, because its decision reaches all ranks
(`multi_rank_fit.py`). One that saves and resumes the run, or changes weights or the learning rate
by itself, has to be on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from distrib.errors import ConfigurationError
from distrib.training.callback_list import flat_callbacks
from distrib.training.rank_comparison import plain, ranks
from distrib.training.resumable_fit import RunSaver

# Keras's callbacks that write files, and the argument that says where.
_WRITERS = {
    "BackupAndRestore": "backup_dir",
    "CSVLogger": "filename",
    "ModelCheckpoint": "filepath",
    "OrbaxCheckpoint": "directory",
    "TensorBoard": "log_dir",
}
_EVERYWHERE, _CHIEFS, _WRITES = "everywhere", "the chief's", "writes"


def describe_callbacks(callbacks: Any) -> list[dict[str, Any]]:
    """Return the callbacks of a `fit` that may not differ between ranks as they like."""
    described = [_describe(callback) for callback in flat_callbacks(callbacks)]
    return [each for each in described if each is not None]


def check_callbacks(by_rank: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Refuse lists of callbacks with which the ranks would wait for each other or diverge.

    Args:
        by_rank: What `describe_callbacks` returned on each rank.

    Raises:
        ConfigurationError: Names the callback, and the ranks that have it.
    """
    kinds = dict.fromkeys((each["role"], each["name"]) for rank in by_rank for each in rank)
    for role, name in kinds:
        having = [[each["arguments"] for each in rank if each["name"] == name] for rank in by_rank]
        _CHECKS[role](name, having)


def _describe(callback: Any) -> dict[str, Any] | None:
    kind, keras_own = type(callback), type(callback).__module__.startswith("keras.")
    name = f"keras.callbacks.{kind.__name__}" if keras_own else kind.__name__
    arguments: Any = None
    if isinstance(callback, RunSaver):
        role = _EVERYWHERE  # The chief's arguments count.
    elif keras_own and kind.__name__ in _WRITERS:
        role, arguments = _WRITES, str(getattr(callback, _WRITERS[kind.__name__], None))
    elif _changes_the_model(callback):
        role, arguments = _EVERYWHERE, _plain_arguments(callback)
        if isinstance(callback, keras.callbacks.EarlyStopping):
            name += "(restore_best_weights=True)"
    elif isinstance(
        callback, keras.callbacks.LearningRateScheduler | keras.callbacks.ReduceLROnPlateau
    ):
        role = _CHIEFS
    else:
        return None
    return {"role": role, "name": name, "arguments": arguments}


def _changes_the_model(callback: Any) -> bool:
    """Tell whether a callback changes weights, or the learning rate within an epoch."""
    if isinstance(callback, keras.callbacks.EarlyStopping):
        return bool(callback.restore_best_weights)
    swaps = isinstance(callback, keras.callbacks.SwapEMAWeights)
    return swaps or getattr(callback, "on_every_rank", False)


def _plain_arguments(callback: Any) -> dict[str, Any]:
    return {
        name: plain(value)
        for name, value in vars(callback).items()
        if not name.startswith("_") and name != "verbose" and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _check_everywhere(name: str, having: Sequence[list[Any]]) -> None:
    with_it = [rank for rank, found in enumerate(having) if found]
    if len(with_it) < len(having):
        raise ConfigurationError(
            f"`callbacks`: {name} is in the list on {ranks(with_it)} only, but takes part in the "
            "training of all ranks. Pass it on every rank, without `if rank == 0`: only the chief "
            "writes files."
        )
    different = [rank for rank, found in enumerate(having) if found != having[0]]
    if different:
        raise ConfigurationError(
            f"`callbacks`: {name} has other arguments on {ranks(different)} than on rank 0, so "
            "the ranks would end with different weights. Pass the same on every rank."
        )


def _check_chiefs(name: str, having: Sequence[list[Any]]) -> None:
    if not having[0]:
        with_it = ranks(rank for rank, found in enumerate(having) if found)
        raise ConfigurationError(
            f"`callbacks`: {name} is in the list on {with_it}, but not on rank 0, whose learning "
            "rate counts. Pass it on every rank."
        )


def _check_writers(name: str, having: Sequence[list[Any]]) -> None:
    short = name.rpartition(".")[2]
    paths = [path for found in having for path in found]
    if short == "BackupAndRestore":
        raise ConfigurationError(
            f"{name} would restore each rank by itself; import {short} from distrib.callbacks, and "
            "pass it on every rank."
        )
    if len(set(paths)) < len(paths) and any(having[1:]):
        raise ConfigurationError(
            f"{name} would write the same files on {ranks(r for r, f in enumerate(having) if f)}; "
            f"import {short} from distrib.callbacks, which takes the same arguments and writes on "
            "the chief only."
        )


_CHECKS = {_EVERYWHERE: _check_everywhere, _CHIEFS: _check_chiefs, _WRITES: _check_writers}
