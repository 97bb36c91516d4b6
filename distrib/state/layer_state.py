"""State of a model's layers that is no variable, and what layers derive from their variables.

A vocabulary is kept in a table, and `Normalization` computes with tensors that it derives from its
variables. Keras saves and loads both through hooks of the layer, which are used here as well:
`save_own_variables` and `load_own_variables`, `save_assets` and `load_assets`. Values of variables
are left out: they are saved by themselves.

Of a user's layer that has `adapt` and none of these hooks, all plain attributes are kept except
those that are named as arguments of its constructor.
"""

from __future__ import annotations

import hashlib
import inspect
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distrib.checkpoint.training_item import unnumbered
from distrib.errors import CheckpointMismatchError
from distrib.keras_compat import layers
from distrib.state import codec
from distrib.state.variables import replicas_of

LayerState = dict[str, Any]
_Store = dict[str, Any]

# Entries of a layer's state.
_NAME, _KIND = "name", "class"
_VALUES, _FILES, _LEARNED, _VOCABULARY = "values", "files", "learned", "vocabulary"


_WITH_VOCABULARY = (
    keras.layers.TextVectorization,
    keras.layers.StringLookup,
    keras.layers.IntegerLookup,
)


class LayerStates:
    """The layers of a model that hold more than variables.

    Files (vocabularies) and what `adapt` learned are read once: `fit` does not change them.

    Args:
        model: A model whose variables exist.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers = [
            layer for layer in layers.layers_of(model) if layers.keeps_more_than_variables(layer)
        ]
        self._fixed = [_fixed_state(layer) for layer in self._layers]

    @property
    def not_adapted(self) -> list[str]:
        """Names of the layers that have no vocabulary yet."""
        return [
            layer.name
            for layer in self._layers
            if isinstance(layer, _WITH_VOCABULARY)
            and not layer.get_vocabulary(include_special_tokens=False)
        ]

    @property
    def variables(self) -> list[npt.NDArray[Any]]:
        """Values of these layers' variables on the first replica."""
        found = (variable for layer in self._layers for variable in layer.variables)
        return [replicas_of(variable)[0].numpy() for variable in found]

    def capture(self) -> list[LayerState]:
        """Return the state of the layers, for `distrib.state.codec`."""
        return [
            {**fixed, _VALUES: _values(layer)}
            for layer, fixed in zip(self._layers, self._fixed, strict=True)
        ]

    def check(self, saved: Sequence[LayerState]) -> None:
        """Compare a saved state with the layers at hand.

        Raises:
            CheckpointMismatchError: Names the layers that the state does not fit. Nothing was
                changed.
        """
        differences = list(self._differences(saved))
        if differences:
            lines = "\n".join(f"  {line}" for line in differences)
            raise CheckpointMismatchError(
                f"The checkpoint does not fit this model's layers:\n{lines}\n"
                "Nothing was changed. Build the same model, or give this run its own `directory`."
            )

    def counterparts(
        self, saved: Sequence[LayerState]
    ) -> tuple[list[LayerState | None], list[str]]:
        """Find the states that another model has saved of the counterparts of these layers.

        Returns:
            The state of each layer's counterpart, if any, and the names of the layers that keep
            another vocabulary than their counterpart's, because it cannot be replaced.
        """
        left = list(saved)
        found: list[LayerState | None] = []
        kept = []
        for layer, fixed in zip(self._layers, self._fixed, strict=True):
            entry = next((entry for entry in left if _label(entry) == _label(fixed)), None)
            if entry is not None:
                left = [other for other in left if other is not entry]
                if _excludes(fixed, entry):
                    kept.append(layer.name)
                    entry = None
            found.append(entry)
        return found, kept

    def load(self, saved: Sequence[LayerState | None] | None) -> tuple[set[int], list[str]]:
        """Load a saved state, and derive anew what layers derive from variables.

        The variables must hold their values by now. Hooks may assign other values to those whose
        ids are returned: assign these again.

        Args:
            saved: As `capture` returned it, with `None` for a layer to leave as it is; `None` if an
                old checkpoint has none.

        Returns:
            The ids of `tf.Variable`s of these layers, and the names of those layers whose files or
            learned attributes were replaced by others.
        """
        replaced = []
        entries = [None] * len(self._layers) if saved is None else list(saved)
        for number, (layer, entry) in enumerate(zip(self._layers, entries, strict=True)):
            _load_values(layer, {} if entry is None else entry[_VALUES])
            if entry is not None and _load_fixed(layer, entry, self._fixed[number]):
                self._fixed[number] = _fixed_state(layer)
                _check_loaded(layer, entry, self._fixed[number])
                replaced.append(layer.name)
        if self._layers:
            layers.forget_traces(self._model)
        touched = [variable for layer in self._layers for variable in layer.variables]
        return {id(each) for variable in touched for each in replicas_of(variable)}, replaced

    def _differences(self, saved: Sequence[LayerState]) -> Iterator[str]:
        names = [[_label(entry) for entry in entries] for entries in (saved, self._fixed)]
        if names[0] != names[1]:
            shown = [", ".join(each) or "none" for each in names]
            yield f"checkpoint has {shown[0]}, this run has {shown[1]}"
            return
        for layer, entry, fixed in zip(self._layers, saved, self._fixed, strict=True):
            if _excludes(fixed, entry):
                yield (
                    f"layer {layer.name!r}: checkpoint has a vocabulary of {_size(entry)} entries, "
                    f"this run has another one of {_size(fixed)}"
                )


def _excludes(fixed: LayerState, saved: LayerState) -> bool:
    """Tell whether a layer has another vocabulary than the saved one, and has to keep it."""
    if saved[_VOCABULARY] in (None, fixed[_VOCABULARY]):
        return False
    # A vocabulary that the script gives is in no file, and cannot be replaced.
    return not saved[_FILES] or bool(fixed[_VOCABULARY] and not fixed[_FILES])


def _label(entry: Mapping[str, Any]) -> str:
    return f"{entry[_KIND]} {entry[_NAME]!r}"


def _size(entry: Mapping[str, Any]) -> int:
    return int(entry[_VOCABULARY]["size"]) if entry[_VOCABULARY] else 0


def _fixed_state(layer: Any) -> LayerState:
    """Return what a `fit` does not change."""
    return {
        _NAME: unnumbered(layer.name),
        _KIND: type(layer).__name__,
        _FILES: _files(layer),
        _VOCABULARY: _vocabulary(layer),
        _LEARNED: layers.learned_attributes(layer) or _plain_attributes(layer),
    }


def _files(layer: Any) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the content of the files that the layer writes when it is saved, by path."""
    if not hasattr(layer, "save_assets"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        layer.save_assets(folder)
        return {
            path.relative_to(folder).as_posix(): np.frombuffer(path.read_bytes(), np.uint8)
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }


def _vocabulary(layer: Any) -> dict[str, Any] | None:
    """Return what tells vocabularies apart."""
    if not isinstance(layer, _WITH_VOCABULARY):
        return None
    tokens = [str(token) for token in layer.get_vocabulary()]
    digest = hashlib.sha256(repr(tokens).encode()).hexdigest()
    return {"size": len(tokens), "sha256": digest}


def _values(layer: Any) -> dict[str, npt.NDArray[Any]]:
    """Return what the layer's store holds beside variables."""
    return {
        name: np.asarray(value)
        for name, value in _store(layer).items()
        if not isinstance(value, keras.Variable | tf.Variable)
    }


def _store(layer: Any) -> _Store:
    store: _Store = {}
    layer.save_own_variables(store)
    return store


def _load_values(layer: Any, values: Mapping[str, Any]) -> None:
    store = {**_store(layer), **values}
    layer.load_own_variables(
        {name: keras.ops.convert_to_numpy(value) for name, value in store.items()}
    )


def _plain_attributes(layer: Any) -> dict[str, Any]:
    """Return what a user's layer that has `adapt`, and no hooks, keeps in attributes."""
    adapt = getattr(type(layer), "adapt", None)
    hooked = hasattr(layer, "save_assets") or layers.defines_store(layer)
    if adapt is None or hooked or adapt.__module__.startswith("keras."):
        return {}
    left_out = {*vars(keras.layers.Layer()), *inspect.signature(type(layer).__init__).parameters}
    found = {}
    for name, value in vars(layer).items():
        value = value.numpy() if tf.is_tensor(value) and hasattr(value, "numpy") else value
        if name.removeprefix("_") not in left_out and name not in left_out and _is_plain(value):
            found[name] = value
    return found


def _is_plain(value: Any) -> bool:
    try:
        codec.encode(value, "")
    except TypeError:
        return False
    return not isinstance(value, keras.Variable | tf.Variable)


def _load_fixed(layer: Any, saved: LayerState, here: LayerState) -> bool:
    """Replace files and learned attributes; return whether they differed."""
    changed = False
    if saved[_FILES] and _differ(saved, here, _VOCABULARY if saved[_VOCABULARY] else _FILES):
        with tempfile.TemporaryDirectory() as folder:
            for name, content in saved[_FILES].items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.tobytes())
            try:
                layer.load_assets(folder)
            except ValueError as error:
                raise _unreadable(layer, str(error)) from error
        changed = True
    if _differ(saved, here, _LEARNED):
        for name, value in saved[_LEARNED].items():
            setattr(layer, name, value)
        changed = True
    return changed


def _differ(one: LayerState, other: LayerState, entry: str) -> bool:
    return codec.digest(one[entry]) != codec.digest(other[entry])


def _check_loaded(layer: Any, saved: LayerState, here: LayerState) -> None:
    if saved[_VOCABULARY] != here[_VOCABULARY]:
        raise _unreadable(layer, "a token may hold a line break")


def _unreadable(layer: Any, reason: str) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"Layer {layer.name!r} has another vocabulary than the checkpoint, and Keras cannot load "
        f"the checkpoint's ({reason}). Call `adapt` at every start, on the same data."
    )
