"""State of a callback that has no `get_state`: the attributes that training changes.

What an attribute is right after `on_train_begin` comes from the script: arguments, open files, the
time. What has changed since is state. It is saved as far as it is plain (`plain_values.py`), and
the rest is named once. Restoring also puts back the other attributes to what they were after
`on_train_begin`, because a resumed epoch calls `on_epoch_begin` a second time.

Attributes of the user's classes count as well (`losses = []` in a class body). Variables that the
functions of a `LambdaCallback` use are compared, but not saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import keras

from distrib.log import log
from distrib.state.container_kinds import NotRebuiltError
from distrib.state.plain_values import (
    Rebuilder,
    Snapshot,
    from_storable,
    is_complete,
    is_plain,
    snapshot,
    storable,
    without_large_arrays,
)
from distrib.state.value_kinds import attributes_of

# Set by Keras, before `on_train_begin`.
_OF_KERAS = frozenset({"_model", "params"})
_CHANGED, _NOT_SAVED = "changed", "not saved"
_ABSENT = object()


@dataclass(frozen=True)
class _Attribute:
    """Where a value is that a callback may change; without an owner it cannot be set."""

    owner: Any
    name: str
    value: Any

    def set(self, value: Any) -> None:
        if isinstance(self.owner, type):
            setattr(self.owner, self.name, value)
        else:  # Past a `__setattr__` of the callback's.
            object.__setattr__(self.owner, self.name, value)


class AttributeState:
    """Saves and restores what training makes of a callback's attributes.

    Args:
        callback: Whose `on_train_begin` has been called.
        name: By which messages name it.
        ignored: Attributes that somebody else saves.
        saved_elsewhere: `id`s of values that somebody else saves, such as the model's variables.
    """

    def __init__(
        self,
        callback: Any,
        name: str,
        ignored: Collection[str] = (),
        saved_elsewhere: Collection[int] = (),
    ) -> None:
        self._callback = callback
        self._name = name
        self._ignored = _OF_KERAS | frozenset(ignored)
        self._saved_elsewhere = saved_elsewhere
        self._reported: set[str] = set()
        # What was last returned: large arrays that stay as they are need not be copied again.
        self._stored: dict[str, tuple[Snapshot, Any]] = {}
        self._start: dict[str, Snapshot] = {
            key: without_large_arrays(self._snapshot(attribute))
            for key, attribute in self._attributes()
        }

    def get_state(self) -> dict[str, Any]:
        """Return what has changed since `on_train_begin`, and the names of what is not saved."""
        changed, not_saved = {}, []
        for key, attribute in self._attributes():
            now = self._snapshot(attribute)
            if self._start.get(key, _ABSENT) == now:
                continue
            if not is_plain(now) or attribute.owner is None:
                not_saved.append(key)
                continue
            before, stored = self._stored.get(key, (_ABSENT, None))
            if before != now:
                stored = storable(now)
                self._stored[key] = without_large_arrays(now), stored
            changed[key] = stored
        self._report(not_saved)
        return {_CHANGED: changed, _NOT_SAVED: not_saved}

    def set_state(self, state: dict[str, Any]) -> None:
        """Make the attributes what they were when the state was taken."""
        saved = {key: from_storable(value) for key, value in state[_CHANGED].items()}
        attributes = dict(self._attributes())
        for key, attribute in attributes.items():
            if key in saved or key in state[_NOT_SAVED] or attribute.owner is None:
                continue
            now = self._snapshot(attribute)
            start = self._start.get(key, _ABSENT)
            if start == now or not is_plain(now):
                continue
            if start is _ABSENT:
                delattr(attribute.owner, attribute.name)
            elif is_complete(start):
                saved[key] = start
        rebuilder = Rebuilder()
        for key, value in saved.items():
            attribute = attributes.get(key) or self._new_attribute(key)
            try:
                attribute.set(rebuilder.rebuild(value, attribute.value))
            except NotRebuiltError as error:
                warnings.warn(f"{self._name}.{key} could not be restored: {error}.", stacklevel=2)
        self._report(state[_NOT_SAVED])

    def _attributes(self) -> Iterator[tuple[str, _Attribute]]:
        callback = self._callback
        for name, value in attributes_of(callback).items():
            if name not in self._ignored:
                yield name, _Attribute(callback, name, value)
                if isinstance(callback, keras.callbacks.LambdaCallback):
                    for variable, used in _variables_of(value):
                        yield f"{name}({variable})", _Attribute(None, variable, used)
        for owner in _own_classes(callback):
            for name, value in list(vars(owner).items()):
                if not (name.startswith("__") or name in self._ignored or _is_code(value)):
                    yield f"{owner.__name__}.{name}", _Attribute(owner, name, value)

    def _new_attribute(self, key: str) -> _Attribute:
        """Return the place of an attribute that does not exist yet."""
        *owner, name = key.split(".")
        classes = {kind.__name__: kind for kind in _own_classes(self._callback)}
        return _Attribute(classes[owner[0]] if owner else self._callback, name, None)

    def _snapshot(self, attribute: _Attribute) -> Snapshot:
        return snapshot(attribute.value, self._saved_elsewhere)

    def _report(self, not_saved: Iterable[str]) -> None:
        new = [key for key in not_saved if key not in self._reported]
        self._reported.update(new)
        if new:
            log.info(
                f"{self._name}: {', '.join(new)} cannot be saved in checkpoints and will start "
                "anew after a restart. If that matters, give the callback `get_state` and "
                "`set_state` (docs/callbacks.md)."
            )


def _own_classes(callback: Any) -> list[type]:
    """Return the classes of a callback that neither Keras nor distrib defines."""
    classes = type(callback).__mro__
    libraries = {"keras", "distrib", "builtins"}
    return [kind for kind in classes if kind.__module__.partition(".")[0] not in libraries]


def _is_code(value: Any) -> bool:
    """Tell whether a class has something for its behaviour: methods, properties, slots."""
    return callable(value) or hasattr(type(value), "__get__")


def _variables_of(function: Any) -> Iterator[tuple[str, Any]]:
    """Return the variables outside of a function that it uses, by name."""
    if not isinstance(function, FunctionType):
        return
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # Not assigned yet.
            continue
    for name in code.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]
