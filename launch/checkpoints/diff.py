"""`distrib checkpoints diff`: in what two checkpoints differ, and by how much.

Two runs that should be the same can be compared bit by bit, and a run with itself a while ago.
All that a run continues from counts: the arrays, and what else the training item holds. What only
describes the checkpoint, such as the attempt that wrote it and where its bytes lie, does not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distrib.checkpoint.layout import Array, as_bytes
from distrib.checkpoint.stored_checkpoint import LoadedCheckpoint
from distrib.errors import EXIT_FINISHED

from ..tables import print_table
from .lookup import (
    add_command,
    add_second_storage_options,
    choose,
    open_directory,
    open_run,
    reading,
    second_place,
    step,
)

EXIT_DIFFERENT = 1
# Names of layers differ where a process has built more models, and a config follows from the code.
_NOT_COMPARED = {"model", "state"}
_LONGEST = 40


@dataclass(frozen=True)
class ArrayDifference:
    """One array that is not the same in both checkpoints.

    Attributes:
        group: Such as `"model"`.
        name: Of the array.
        what: `"values"`, or what else is different.
        max_abs: Largest difference of two elements; `None` if they cannot be compared.
        relative: Norm of the difference by the norm of the first; `None` as well.
    """

    group: str
    name: str
    what: str
    max_abs: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class FactDifference:
    """One value of the training item that is not the same in both checkpoints.

    Attributes:
        name: Keys on the way to it, with dots.
        first: The value in the first; `None` if it is not there.
        second: The value in the second; `None` if it is not there.
    """

    name: str
    first: Any
    second: Any


def add_commands(commands: Any) -> None:
    """Add `diff`."""
    text = "tell in what two checkpoints differ; exit code 0 if in nothing, else 1"
    command = add_command(commands, "diff", _diff, text)
    command.add_argument("first", type=step, metavar="A", help="a step, or 'newest'")
    command.add_argument("second", type=step, metavar="B", help="a step, or 'newest'")
    command.add_argument(
        "--other", metavar="DIRECTORY", help="where B is, if it belongs to another run"
    )
    add_second_storage_options(command, "--other-storage-options", "--other")


def _diff(options: argparse.Namespace) -> int:
    directory = other = open_run(options)
    if options.other is not None:
        other = open_directory(second_place(options, options.other, "other"))
    chosen = choose(directory, options.first), choose(other, options.second)
    loaded = []
    for stored in chosen:
        with reading(stored):
            loaded.append(stored.read())
    first, second = loaded
    facts = list(compare_facts(first.training, second.training))
    arrays = list(compare_arrays(first, second))
    places = [str(stored.location) for stored in chosen]
    equal = sum(map(len, first.arrays.values())) - sum(one.what != "only in B" for one in arrays)
    if options.json:
        found = {
            "first": places[0],
            "second": places[1],
            "facts": [asdict(fact) for fact in facts],
            "arrays": [asdict(array) for array in arrays],
            "equal_arrays": equal,
        }
        print(json.dumps(found, indent=1))
    else:
        _print(places, facts, arrays, equal)
    return EXIT_DIFFERENT if facts or arrays else EXIT_FINISHED


def compare_arrays(first: LoadedCheckpoint, second: LoadedCheckpoint) -> Iterator[ArrayDifference]:
    """Yield all arrays that are not the same to the bit."""
    for group in [*first.arrays, *(name for name in second.arrays if name not in first.arrays)]:
        a, b = first.arrays.get(group, {}), second.arrays.get(group, {})
        for name in [*a, *(name for name in b if name not in a)]:
            if name not in b:
                yield ArrayDifference(group, name, "only in A")
            elif name not in a:
                yield ArrayDifference(group, name, "only in B")
            elif (difference := _compare(group, name, a[name], b[name])) is not None:
                yield difference


def compare_facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[FactDifference]:
    """Yield all values of two training items that differ, the optimizer's name first."""
    a, b = _facts(first), _facts(second)
    for name in [*a, *(name for name in b if name not in a)]:
        # As JSON, because there NaN equals itself.
        if json.dumps(a.get(name)) != json.dumps(b.get(name)):
            yield FactDifference(name, a.get(name), b.get(name))


def _compare(group: str, name: str, a: Array, b: Array) -> ArrayDifference | None:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return ArrayDifference(group, name, f"{a.dtype}{a.shape} and {b.dtype}{b.shape}")
    if np.array_equal(as_bytes(a), as_bytes(b)):
        return None
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):  # Of infinities.
        x = a.astype(wide)
        distance = x - b.astype(wide)
        largest = float(np.max(np.abs(distance)))
        relative = float(np.linalg.norm(distance)) / (float(np.linalg.norm(x)) or np.nan)
    return ArrayDifference(group, name, "values", largest, relative)


def _facts(training: Mapping[str, Any]) -> dict[str, Any]:
    optimizer = training.get("state", {}).get("optimizer")
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
    facts: Sequence[FactDifference],
    arrays: Sequence[ArrayDifference],
    equal: int,
) -> None:
    print(f"A {places[0]}\nB {places[1]}")
    if facts:
        print()
        rows = [[fact.name, _short(fact.first), _short(fact.second)] for fact in facts]
        print_table(["state", "A", "B"], rows)
    if arrays:
        print()
        rows = [[a.group, a.name, _number(a.max_abs), _number(a.relative), a.what] for a in arrays]
        print_table(["group", "array", ">max abs", ">relative L2", "differs in"], rows)
    print(f"\n{equal} arrays have the same bits, {len(arrays)} differ.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
