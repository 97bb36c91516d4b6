"""`distrib checkpoints diff`: where two checkpoints differ, and by how much.

The command compares two runs bit by bit, or two steps of one run: all state that a run resumes
from, in arrays and in the training item. What only describes the checkpoint, such as its attempt
and its layout, does not count. Changes of the script between the two are listed, and do not count
either: the state does not depend on them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from distrib.checkpoint.layout import Array, as_bytes
from distrib.checkpoint.stored_checkpoint import LoadedCheckpoint
from distrib.checkpoint.training_item import MODEL_CONFIG, RECORD, VARIABLES_STATE
from distrib.errors import EXIT_FINISHED
from distrib.state.differences import match_variables, variables_by_group
from distrib.state.script_changes import Change, changes_between

from ..tables import print_table
from .errors import translate_read_errors
from .lookup import choose
from .options import (
    add_command,
    add_second_storage_options,
    open_directory,
    open_run,
    second_location,
    step,
)

EXIT_DIFFERENT = 1
# Layers' names differ if a process has built other models before; the config follows from the code.
# The record of the script is compared by itself.
_NOT_COMPARED = {MODEL_CONFIG, VARIABLES_STATE, RECORD}
_MAX_CELL = 40


@dataclass(frozen=True)
class ArrayDifference:
    """One array that differs between two checkpoints.

    Attributes:
        group: Such as `"model"`.
        name: Of the array.
        what: `"values"`, or else the shapes and dtypes, or the checkpoint that has the array.
        max_abs: Largest absolute difference of two elements; `None` if shape or dtype differ.
        relative: L2 norm of the difference over the norm of the first; `None` likewise.
    """

    group: str
    name: str
    what: str
    max_abs: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class StateDifference:
    """One value of the training item that differs between two checkpoints.

    Attributes:
        name: Its keys, joined by dots.
        first: The value in the first checkpoint; `None` if that has none.
        second: The value in the second checkpoint; `None` if that has none.
    """

    name: str
    first: Any
    second: Any


def add_commands(commands: Any) -> None:
    """Add `diff`."""
    text = "compare two checkpoints; exit code 0 if they are equal, 1 if not"
    command = add_command(commands, "diff", _diff, text)
    command.add_argument("first", type=step, metavar="A", help="a step, or 'newest'")
    command.add_argument("second", type=step, metavar="B", help="a step, or 'newest'")
    command.add_argument("--other", metavar="DIRECTORY", help="take B from this run (DIRECTORY)")
    add_second_storage_options(command, "--other-storage-options", "--other")


def _diff(options: argparse.Namespace) -> int:
    directory = other = open_run(options)
    if options.other is not None:
        other = open_directory(second_location(options, options.other, "other"))
    chosen = choose(directory, options.first), choose(other, options.second)
    loaded = []
    for stored in chosen:
        with translate_read_errors(stored):
            loaded.append(stored.read())
    first, second = loaded[0], named_as(loaded[0], loaded[1])
    state = list(compare_state(first.training, second.training))
    arrays = list(compare_arrays(first, second))
    script = [
        change
        for change in changes_between(first.training, second.training)
        if not change.name.startswith("versions.")  # They are among the state.
    ]
    places = [str(stored.location) for stored in chosen]
    equal = sum(map(len, first.arrays.values())) - sum(one.what != "only in B" for one in arrays)
    if options.json:
        found = {
            "first": places[0],
            "second": places[1],
            "facts": [asdict(value) for value in state],
            "script": [
                {"name": change.name, "first": change.saved, "second": change.here}
                for change in script
            ],
            "arrays": [asdict(array) for array in arrays],
            "equal_arrays": equal,
        }
        print(json.dumps(found, indent=1))
    else:
        _print(places, state, script, arrays, equal)
    return EXIT_DIFFERENT if state or arrays else EXIT_FINISHED


def compare_arrays(first: LoadedCheckpoint, second: LoadedCheckpoint) -> Iterator[ArrayDifference]:
    """Yield all arrays of which any bit differs."""
    for group in [*first.arrays, *(name for name in second.arrays if name not in first.arrays)]:
        a, b = first.arrays.get(group, {}), second.arrays.get(group, {})
        for name in [*a, *(name for name in b if name not in a)]:
            if name not in b:
                yield ArrayDifference(group, name, "only in A")
            elif name not in a:
                yield ArrayDifference(group, name, "only in B")
            elif (difference := _compare(group, name, a[name], b[name])) is not None:
                yield difference


def compare_state(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[StateDifference]:
    """Yield all values of two training items that differ, the optimizer's name first."""
    a, b = _flat_state(first), _flat_state(second)
    for name in [*a, *(name for name in b if name not in a)]:
        # In JSON, NaN equals itself.
        if json.dumps(a.get(name)) != json.dumps(b.get(name)):
            yield StateDifference(name, a.get(name), b.get(name))


def named_as(first: LoadedCheckpoint, second: LoadedCheckpoint) -> LoadedCheckpoint:
    """Return the second checkpoint with the first's names of variables.

    The numbers in names differ if a process has built other models before.
    """
    groups = [variables_by_group(each.training[VARIABLES_STATE]) for each in (first, second)]
    arrays = dict(second.arrays)
    for group, variables in groups[1].items():
        match = match_variables(groups[0][group], variables)
        names = {
            new: old
            for saved, here in (*match.same, *match.changed)
            for old, new in zip(saved["names"], here["names"], strict=False)
        }
        held = second.arrays.get(group, {})
        arrays[group] = {names.get(name, name): array for name, array in held.items()}
    return replace(second, arrays=arrays)


def _compare(group: str, name: str, a: Array, b: Array) -> ArrayDifference | None:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return ArrayDifference(group, name, f"{a.dtype}{a.shape} and {b.dtype}{b.shape}")
    if np.array_equal(as_bytes(a), as_bytes(b)):
        return None
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):  # Infinities.
        x = a.astype(wide)
        distance = x - b.astype(wide)
        largest = float(np.max(np.abs(distance)))
        relative = float(np.linalg.norm(distance)) / (float(np.linalg.norm(x)) or np.nan)
    return ArrayDifference(group, name, "values", largest, relative)


def _flat_state(training: Mapping[str, Any]) -> dict[str, Any]:
    optimizer = training.get(VARIABLES_STATE, {}).get("optimizer")
    kept = {name: value for name, value in training.items() if name not in _NOT_COMPARED}
    return {"optimizer": optimizer, **dict(_flat(kept, ""))}


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _print(
    places: Sequence[str],
    state: Sequence[StateDifference],
    script: Sequence[Change],
    arrays: Sequence[ArrayDifference],
    equal: int,
) -> None:
    print(f"A {places[0]}\nB {places[1]}")
    if state:
        print()
        rows = [[value.name, _short(value.first), _short(value.second)] for value in state]
        print_table(["state", "A", "B"], rows)
    if script:
        print()
        rows = [[change.name, _short(change.saved), _short(change.here)] for change in script]
        print_table(["script", "A", "B"], rows)
    if arrays:
        print()
        rows = [[a.group, a.name, _number(a.max_abs), _number(a.relative), a.what] for a in arrays]
        print_table(["group", "array", ">max abs", ">relative L2", "differs in"], rows)
    print(f"\n{equal} arrays are bit-identical, {len(arrays)} differ.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 3]}..."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
