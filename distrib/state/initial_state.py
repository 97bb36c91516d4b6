"""A new run that begins with the weights of another one.

The other run may have had another head, optimizer or data, so only some variables of its checkpoint
have a counterpart here: the one with the same path. Keras appends numbers to the names of layers
that it names itself, and counts them up in each process. So for the same model variables are paired
in order. For another one numbers are compared as they are, unless one side alone has the name
without a number, which Keras gives to the first layer of a kind, or no number is on both sides:
then the first layer of a kind is the counterpart of the first, and so on.

A new run keeps what the script gives it: the seeds of its dropout, and its learning rate.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrib.checkpoint.training_item import format_variable, identity, unnumbered
from distrib.state.saved_variables import MODEL, OPTIMIZER, OTHER, SavedVariable

Description = Mapping[str, Any]

_SHOWN = 20


@dataclass(frozen=True)
class Matches:
    """How the variables of a checkpoint fit those of a model.

    Attributes:
        pairs: Variables, and the descriptions of their counterparts.
        new: Descriptions of variables without a counterpart.
        unused: Descriptions of the checkpoint's that are not the counterpart of any.
        reshaped: Descriptions of counterparts, the checkpoint's first, that differ in shape.
        replaced: Names of layers that take over another vocabulary, or what `adapt` learned.
            Defaults to none.
        kept: Names of layers that keep another vocabulary than the checkpoint's. Defaults to none.
    """

    pairs: list[tuple[SavedVariable, Description]]
    new: list[Description]
    unused: list[Description]
    reshaped: list[tuple[Description, Description]]
    replaced: Sequence[str] = ()
    kept: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Return a line for each kind of what is not taken over, or takes the place of another."""
        reshaped = [
            f"{format_variable(new)} (there {tuple(old['shape'])})" for old, new in self.reshaped
        ]
        kinds = {
            "only in this model": [format_variable(entry) for entry in self.new],
            "only in the checkpoint": [format_variable(entry) for entry in self.unused],
            "of another shape": reshaped,
            "the checkpoint's vocabulary, or what `adapt` learned there, replaces this script's in "
            "layer": self.replaced,
            "another vocabulary than the checkpoint's, given by this script, is kept, so that "
            "weights after it mean other tokens, in layer": self.kept,
        }
        return [f"{kind}: {_listed(shown)}" for kind, shown in kinds.items() if shown]


def find_counterparts(
    saved: Sequence[Description], slots: Sequence[SavedVariable], restore: Sequence[str]
) -> Matches:
    """Find the counterparts of variables in a checkpoint.

    Args:
        saved: The checkpoint's descriptions.
        slots: All variables of the model at hand.
        restore: `"model"`, or `"model"` and `"optimizer"`; the latter includes other variables that
            the model holds.
    """
    groups = [MODEL, *((OPTIMIZER, OTHER) if OPTIMIZER in restore else ())]
    old = [entry for entry in saved if entry["group"] in groups]
    here = [slot for slot in slots if slot.group in groups]
    descriptions = [slot.describe() for slot in here]
    if [identity(entry) for entry in old] == [identity(entry) for entry in descriptions]:
        counterparts: list[Description | None] = list(old)
    else:
        keys_of_old, keys = _keys(old, descriptions), _keys(descriptions, old)
        by_key = dict(zip(keys_of_old, old, strict=True))
        counterparts = [by_key.get(key) for key in keys]
    matches = Matches([], [], [], [])
    used = set()
    for slot, new, entry in zip(here, descriptions, counterparts, strict=True):
        used.add(id(entry))
        if slot.seed or _is_kept(new):
            continue
        if entry is None:
            matches.new.append(new)
        elif entry["shape"] != new["shape"]:
            matches.reshaped.append((entry, new))
        else:
            matches.pairs.append((slot, entry))
    matches.unused.extend(e for e in old if id(e) not in used and not _is_kept(e))
    return matches


def _listed(items: Sequence[str]) -> str:
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more


def _is_kept(entry: Description) -> bool:
    """Tell whether a new run has its own."""
    return entry["path"].rpartition("/")[2] in ("learning_rate", "seed_generator_state")


def _keys(entries: Sequence[Description], others: Sequence[Description]) -> list[Any]:
    """Return for each of a run's variables what its counterpart in the other run has as well."""
    paths = [entry["path"] for entry in entries if entry["group"] == MODEL]
    other_paths = [entry["path"] for entry in others if entry["group"] == MODEL]
    renumber = _renumbering(paths, other_paths)
    # Optimizers name their variables after the weights, with underscores for slashes.
    flat = sorted(((path.replace("/", "_"), path) for path in paths), key=_length, reverse=True)

    def key(entry: Description) -> Any:
        group, path = entry["group"], entry["path"]
        if group == MODEL:
            return group, renumber(path)
        optimizer, _, name = path.rpartition("/")
        for weight, weight_path in flat:
            if name.startswith(f"{weight}_"):
                rest = name.removeprefix(weight)
                return group, unnumbered(optimizer), renumber(weight_path), rest
        return group, unnumbered(path)

    return [key(entry) for entry in entries]


def _length(pair: tuple[str, str]) -> int:
    return len(pair[0])


def _renumbering(paths: Iterable[str], others: Iterable[str]) -> Callable[[str], str]:
    """Return how to number the names in a run's paths so that they compare with another run's."""
    mine, theirs = _numbers(paths), _numbers(others)

    def renumber(path: str) -> str:
        return "/".join(map(renumbered, path.split("/")))

    def renumbered(name: str) -> str:
        stem, number = _split(name)
        counted = (0 in mine[stem]) != (0 in theirs[stem]) or not mine[stem] & theirs[stem]
        if not counted:
            return name
        return f"{stem} {sorted(mine[stem]).index(number)}"

    return renumber


def _numbers(paths: Iterable[str]) -> dict[str, set[int]]:
    numbers: dict[str, set[int]] = defaultdict(set)
    for path in paths:
        for name in path.split("/"):
            stem, number = _split(name)
            numbers[stem].add(number)
    return numbers


def _split(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.+?)_(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)
