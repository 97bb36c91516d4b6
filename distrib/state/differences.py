"""What differs between a checkpoint and the run at hand, or between two ranks, in words.

Variables are matched by group and path, not by their position in the whole list: one variable more
must not make all that follow look like others. The numbers that Keras gives to names depend on what
the process has built before, so variables whose paths differ in them alone are matched in the order
in which they stand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from distrib.checkpoint.training_item import format_variable, identity, unnumbered

Variable = Mapping[str, Any]
_NAMED = 3


@dataclass
class Match:
    """Which variable of one description is which of the other.

    Attributes:
        same: Pairs of equal path, shape and dtype, in the first description's order.
        changed: Pairs of equal path, but another shape or dtype.
        missing: Variables that only the first description has.
        new: Variables that only the second one has.
    """

    same: list[tuple[Variable, Variable]] = field(default_factory=list)
    changed: list[tuple[Variable, Variable]] = field(default_factory=list)
    missing: list[Variable] = field(default_factory=list)
    new: list[Variable] = field(default_factory=list)


def match_variables(saved: Sequence[Variable], here: Sequence[Variable]) -> Match:
    """Match the variables of one group by path.

    Args:
        saved: Their descriptions, as of `SavedVariable.describe`.
        here: The other ones.
    """
    match = Match()
    identities = [identity(one) for one in saved], [identity(one) for one in here]
    if len(saved) == len(here) and all(map(_are_same, *identities)):
        match.same = list(zip(saved, here, strict=True))
        return match
    # Of equal paths, such as `dense/kernel` and `dense_1/kernel`, an alignment finds the new one.
    aligned = SequenceMatcher(None, *identities, autojunk=False).get_matching_blocks()
    ours: dict[int, int] = {
        block.a + offset: block.b + offset for block in aligned for offset in range(block.size)
    }
    taken = set(ours.values())
    others = defaultdict(list)
    for number, one in enumerate(here):
        if number not in taken:
            others[unnumbered(one["path"])].append(number)
    for number, one in enumerate(saved):
        same_path = others[unnumbered(one["path"])]
        if number not in ours and same_path:
            equal = (other for other in same_path if identities[1][other] == identities[0][number])
            ours[number] = next(equal, same_path[0])
            same_path.remove(ours[number])
    for number, one in enumerate(saved):
        if number not in ours:
            match.missing.append(one)
        elif identities[0][number] == identities[1][ours[number]]:
            match.same.append((one, here[ours[number]]))
        else:
            match.changed.append((one, here[ours[number]]))
    left = {number for numbers in others.values() for number in numbers}
    match.new = [one for number, one in enumerate(here) if number in left]
    return match


def _are_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Tell whether two variables at the same place have one identity.

    A layer that `adapt` has built before a model held it lacks the model's name in its path.
    """
    (group, path, *kind), (other_group, other_path, *other_kind) = one, other
    short, long = sorted((path, other_path), key=len)
    same_path = short == long or long.endswith(f"/{short}")
    return same_path and (group, kind) == (other_group, other_kind)


def variables_by_group(description: Mapping[str, Any]) -> defaultdict[str, list[Variable]]:
    """Return the variables of a description, as of `TrainingState.describe`, by group."""
    groups: defaultdict[str, list[Variable]] = defaultdict(list)
    for variable in description["variables"]:
        groups[variable["group"]].append(variable)
    return groups


def differences_between(
    saved: Mapping[str, Any],
    here: Mapping[str, Any],
    one: str = "checkpoint",
    other: str = "this run",
) -> Iterator[str]:
    """Yield a line for each kind of difference between two descriptions of model and optimizer.

    Args:
        saved: A description, as of `TrainingState.describe`.
        here: The other one.
        one: What the first is called.
        other: What the second is called.
    """
    other_optimizer = saved["optimizer"] != here["optimizer"]
    groups = variables_by_group(saved), variables_by_group(here)
    for group in dict.fromkeys([*groups[0], *groups[1]]):
        if group == "optimizer" and other_optimizer:
            continue  # Its variables differ as well, of course.
        match = match_variables(groups[0][group], groups[1][group])
        for old, new in match.changed[:_NAMED]:
            shown = format_variable(old), format_variable(new)
            yield f"{group}: {one} has {shown[0]}, {other} has {shown[1]}"
        if len(match.changed) > _NAMED:
            yield f"{group}: and {len(match.changed) - _NAMED} more of another shape or dtype"
        if match.missing:
            the = "the " * (one == "checkpoint")
            yield f"{group}: only {the}{one} has {_listed(match.missing)}"
        if match.new:
            yield f"{group}: only {other} has {_listed(match.new)}"
        if not match.changed and not match.missing and not match.new:
            moved = _first_moved(match, groups[1][group])
            if moved is not None:
                yield f"{group}: {moved['path']} stands at another place in {other}"
    if other_optimizer:
        yield f"optimizer: {one} has {saved['optimizer']}, {other} has {here['optimizer']}"


def _first_moved(match: Match, here: Sequence[Variable]) -> Variable | None:
    """Return the first variable that is not where its counterpart is."""
    pairs = zip(match.same, here, strict=True)
    return next((old for (old, new), there in pairs if new is not there), None)


def _listed(variables: Sequence[Variable]) -> str:
    more = len(variables) - _NAMED
    shown = ", ".join(map(format_variable, variables[:_NAMED]))
    return shown + (f" and {more} more" if more > 0 else "")
