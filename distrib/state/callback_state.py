"""The callbacks of a `fit` whose state is saved with it, and how.

A callback with `get_state` and `set_state` decides by itself. Of any other one, and of what a
user's subclass adds to one of distrib's, the attributes that training changes are saved
(`attribute_state.py`). Callbacks that another callback holds are found, too.
"""

from __future__ import annotations

import dis
from collections import Counter
from collections.abc import Collection, Iterator, Sequence, ValuesView
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol, runtime_checkable

import keras

from distrib.state.attribute_state import AttributeState
from distrib.state.value_kinds import attributes_of

# Keras's callbacks whose attributes go with files, or with weights in the middle of a swap.
_NOT_RESUMABLE = frozenset({"CSVLogger", "OrbaxCheckpoint", "SwapEMAWeights", "TensorBoard"})
# Those that have nothing to save beside what is saved for them anyway.
_WITHOUT_STATE = frozenset({"CallbackList", "History", "ProgbarLogger"})
_TEST_HOOKS = ("on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end")


@runtime_checkable
class StatefulCallback(Protocol):
    """A callback, distrib's or anybody's, whose state is saved with the checkpoint.

    Values may be None, bool, int, float, str, numpy arrays of numbers, and lists, tuples and
    str-keyed dicts of these. `set_state` is called after every callback's `on_train_begin`, and
    once more after `on_epoch_begin` when the run goes on in the middle of an epoch.
    """

    def get_state(self) -> dict[str, Any]:
        """Return a copy of all that the callback needs to continue."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned, perhaps in another process."""


@dataclass(frozen=True)
class SavedState:
    """A part of the state of the callbacks.

    Attributes:
        name: Its name in checkpoints, the same for the same list of callbacks.
        holder: Whose `get_state` and `set_state` are called.
        acts_in_validation: Whether a validation may change it.
        is_shared: Whether all ranks go on with the chief's. Defaults to `False`.
    """

    name: str
    holder: StatefulCallback
    acts_in_validation: bool
    is_shared: bool = False


def saved_states(
    callbacks: Sequence[Any], saved_elsewhere: Collection[int] = ()
) -> list[SavedState]:
    """Return what to save of the callbacks of a `fit`, whose `on_train_begin` has been called.

    Args:
        callbacks: Those in the list.
        saved_elsewhere: `id`s of values that are saved with the model, such as its variables.
    """
    states: list[SavedState] = []
    decide: Counter[str] = Counter()
    tracked: Counter[str] = Counter()
    for callback, acts in _with_nested(callbacks):
        kind = type(callback).__name__
        if isinstance(callback, StatefulCallback):
            states.append(SavedState(_numbered(kind, decide), callback, acts))
        ignored = _ignored_attributes(callback)
        if ignored is not None:
            name = _numbered(kind, tracked)
            state = AttributeState(callback, name, ignored, saved_elsewhere)
            states.append(SavedState(f"{name} attributes", state, acts))
    return states


def acts_in_validation(callback: Any) -> bool:
    """Tell whether a callback has hooks that a validation calls."""
    return any(
        getattr(getattr(callback, hook, None), "__func__", None)
        is not getattr(keras.callbacks.Callback, hook)
        for hook in _TEST_HOOKS
    )


def not_resumable_base(callback: Any) -> type | None:
    """Return the class of Keras's that keeps a callback from being resumed; `None` if none does."""
    if isinstance(callback, StatefulCallback):
        return None
    classes = type(callback).__mro__
    return next((kind for kind in classes if _is_of_keras(kind, _NOT_RESUMABLE)), None)


def _numbered(kind: str, numbers: Counter[str]) -> str:
    numbers[kind] += 1
    return kind if numbers[kind] == 1 else f"{kind}-{numbers[kind]}"


def _with_nested(callbacks: Sequence[Any]) -> Iterator[tuple[Any, bool]]:
    """Yield callbacks, then those that they hold, and whether a validation may change them."""
    seen = {id(callback) for callback in callbacks}
    found = [(callback, acts_in_validation(callback)) for callback in callbacks]
    while found:
        yield from found
        nested = []
        for holder, acts in found:
            for callback in _held_by(holder):
                if id(callback) not in seen:
                    seen.add(id(callback))
                    nested.append((callback, acts or acts_in_validation(callback)))
        found = nested


def _held_by(callback: Any) -> Iterator[Any]:
    for value in attributes_of(callback).values():
        inner = value.values() if isinstance(value, dict) else value
        for each in inner if isinstance(inner, list | tuple | ValuesView) else (value,):
            if isinstance(each, keras.callbacks.Callback):
                yield each


def _ignored_attributes(callback: Any) -> frozenset[str] | None:
    """Return the attributes of a callback that are not to be saved; `None` if none is."""
    classes = type(callback).__mro__
    deciding = next((kind for kind in classes if "get_state" in vars(kind)), None)
    if "get_state" in attributes_of(callback) or not (deciding is None or _is_ours(deciding)):
        return None
    known = next((i for i, kind in enumerate(classes) if _saves_itself(kind)), None)
    if known is None:
        return frozenset()
    if known == 0 and not isinstance(callback, keras.callbacks.LambdaCallback):
        return None
    return frozenset(name for kind in classes[known:] for name in _assigned_by(kind))


def _saves_itself(kind: type) -> bool:
    return _is_ours(kind) or _is_of_keras(kind, _NOT_RESUMABLE | _WITHOUT_STATE)


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("distrib.")


def _is_of_keras(kind: type, names: frozenset[str]) -> bool:
    return kind.__module__.startswith("keras.") and kind.__name__ in names


def _assigned_by(kind: type) -> Iterator[str]:
    """Return the names of attributes that a class's methods assign."""
    for member in vars(kind).values():
        if isinstance(member, FunctionType):
            for instruction in dis.get_instructions(member):
                if instruction.opname == "STORE_ATTR":
                    yield instruction.argval
