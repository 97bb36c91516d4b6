"""What has changed in a script between two attempts of its run, and which side counts.

Restoring a checkpoint assigns variables. So of a changed script everything counts that is no
variable: the loss, the arguments of layers, callbacks and optimizers. What is a variable, above all
the learning rate, is the checkpoint's. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distrib.checkpoint import training_item
from distrib.data.compare_contents import compare_contents
from distrib.state.description import is_time

# More epochs continue a run, and what is shown is not what is trained. `BackupAndRestore` saves the
# same state whatever its arguments are.
_IGNORED = re.compile(r"fit\.(epochs|initial_epoch|verbose)$|callbacks\.BackupAndRestore(\.|$)")
_RESTORED = re.compile(
    r"layers\.(.+\.)?(seed$|\w*initializer(\.|$))|optimizer\.(.+\.)?(learning_rate|initial_scale)$"
)
# Last words in the names of callbacks' arguments that say where something is written, and how.
_PLACE = re.compile(
    r"(.*_)?(dir|directory|file|filename|filepath|folder|id|logdir|name|path|root|time|url|verbose)"
)
# What a script makes anew at each start: times and unique names.
_MADE_ANEW = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}"
    r"|\d{4}[-_.]?\d\d[-_.]?\d\d([T _-]?\d\d[-_:.h]?\d\d([-_:.]?\d\d(\.\d+)?)?)?"
)
_LISTS = frozenset({"layers", "callbacks", "optimizer"})
_FACTS = frozenset({"git", "replicas"})
_CODE = re.compile(r" \(code [0-9a-f]+\)")
# What old versions did not record of data, or only some of them, and the name of what arrays hold.
_DATA_OF_LATE = re.compile(r"data\..*\.(functions|contents)$")
_CONTENTS = ".contents"
_NOT_RECORDED = "not recorded"
_MAX_VALUE = 60
_SET_LEARNING_RATE = (
    ". To set it, add LearningRateScheduler(lambda epoch: {}) to the callbacks, which does when an "
    "epoch begins"
)


@dataclass(frozen=True)
class Change:
    """One difference between the records of two attempts.

    Attributes:
        name: Such as `"compile.loss"` or `"callbacks.EarlyStopping.patience"`.
        saved: As the checkpoint describes it; `None` if it has no such thing.
        here: As the script at hand does; `None` likewise.
        current: Of a learning rate that callbacks have changed since: the checkpoint's own.
            Defaults to `None`.
    """

    name: str
    saved: Any
    here: Any
    current: float | None = None

    @property
    def restored(self) -> bool:
        """Whether the checkpoint's side counts."""
        return _RESTORED.match(self.name) is not None and not isinstance(self.here, dict)

    @property
    def harmless(self) -> bool:
        """Whether it changes nothing of what is trained, such as the folder of a log."""
        section, *rest = self.name.split(".")
        if self.name.endswith(_CONTENTS):
            return compare_contents(self.saved, self.here) == "rounding"
        if section != "callbacks" or len(rest) < 2:
            return section in _FACTS
        is_place = _PLACE.fullmatch(rest[-1]) is not None
        return is_place or _same_but_made_anew(self.saved, self.here)

    def __str__(self) -> str:
        saved, here = _shown(self.saved), _shown(self.here)
        if self.name == "replicas":
            return f"replicas: {saved} in the checkpoint, {here} now; rounding differs"
        if self.name == "git":
            return f"git revision: {saved} in the checkpoint, {here} now"
        if self.name.startswith("versions."):
            return f"{self.name.partition('.')[2]}: {saved} in the checkpoint, {here} now"
        if self.name.endswith(_CONTENTS):
            differ = "rounded otherwise" if self.harmless else "other examples, or in another order"
            return f"{self.name.removesuffix(_CONTENTS)}: {differ}; the script's are used"
        if self.name.endswith(".code"):
            return f"{self.name.removesuffix('.code')}: its code has changed; the script's is used"
        listed = self.name.split(".")[0] in _LISTS
        if listed and isinstance(self.saved, dict) and self.here is None:
            return f"{self.name}: no longer in the script"
        if listed and isinstance(self.here, dict) and self.saved is None:
            return f"{self.name}: new in the script"
        text = f"{self.name}: checkpoint {saved}, script {here}; the"
        if not self.restored:
            return f"{text} script's is used"
        by_now = "" if self.current is None else f" ({_shown(self.current)} by now)"
        hint = _SET_LEARNING_RATE.format(here) if self.name.endswith("learning_rate") else ""
        return f"{text} checkpoint's{by_now} is used{hint}"


def changes_between(
    saved: Mapping[str, Any], here: Mapping[str, Any], learning_rates: Collection[float] = ()
) -> list[Change]:
    """Return what has changed between two attempts.

    Args:
        saved: A checkpoint's JSON item, or `RECORD` and `VERSIONS` of it. If it has no record,
            nothing is known to have changed.
        here: The same of the other attempt.
        learning_rates: Values of the checkpoint's learning-rate variables; a script that has one
            of these would change nothing. Defaults to `()`.
    """
    old, new = _record(saved), _record(here)
    if not old or not new:
        return []
    if _minor(old, "python") != _minor(new, "python"):  # Each has a bytecode of its own.
        old, new = _without_code(old), _without_code(new)
    same_keras = old["versions"].get("keras") == new["versions"].get("keras")
    changes = (_with_current(change, learning_rates) for change in _changes(old, new, ""))
    return [
        change
        for change in changes
        if not _IGNORED.match(change.name)
        and not (change.name.endswith(".learning_rate") and change.here in learning_rates)
        # Another version of Keras has new arguments, with defaults.
        and (same_keras or isinstance(change.saved or change.here, dict) or _on_both_sides(change))
    ]


def _with_current(change: Change, learning_rates: Collection[float]) -> Change:
    if len(learning_rates) != 1 or not change.name.endswith(".learning_rate"):
        return change
    (current,) = learning_rates
    return change if current == change.saved else replace(change, current=current)


def _record(item: Mapping[str, Any]) -> dict[str, Any]:
    record = item.get(training_item.RECORD)
    return {**record, "versions": item.get(training_item.VERSIONS, {})} if record else {}


def _minor(record: Mapping[str, Any], name: str) -> list[str]:
    return str(record["versions"].get(name)).split(".")[:2]


def _on_both_sides(change: Change) -> bool:
    return change.saved is not None and change.here is not None


def _changes(saved: Any, here: Any, name: str) -> Iterator[Change]:
    """Yield the innermost differences of two nested dicts; what is missing is the same as None."""
    whole = name == "git" or name.endswith(_CONTENTS)
    if isinstance(saved, dict) and isinstance(here, dict) and not whole:
        for key in dict.fromkeys([*saved, *here]):
            yield from _changes(saved.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif _text(saved) != _text(here) and not _is_unknown(name, saved, here):
        yield Change(name, saved, here)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _same_but_made_anew(saved: Any, here: Any) -> bool:
    if is_time(saved) and is_time(here):
        return True
    if isinstance(saved, str) and isinstance(here, str):
        return _MADE_ANEW.sub("", saved) == _MADE_ANEW.sub("", here)
    return False


def _is_unknown(name: str, saved: Any, here: Any) -> bool:
    sides = saved, here
    if name == "git" or name.startswith("versions."):
        return None in sides
    if name.startswith("data."):
        if _DATA_OF_LATE.match(name) and None in sides:
            return True
        if isinstance(saved, str | list) and isinstance(here, dict):  # Of an array, or of several.
            return True
    return any(isinstance(side, str) and side.startswith(_NOT_RECORDED) for side in sides)


def _without_code(described: Any) -> Any:
    if isinstance(described, dict):
        return {name: _without_code(each) for name, each in described.items() if name != "code"}
    if isinstance(described, list):
        return [_without_code(each) for each in described]
    return _CODE.sub("", described) if isinstance(described, str) else described


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict) and value.keys() == {"revision", "modified"}:
        return value["revision"][:10] + " (modified)" * value["modified"]
    text = value if isinstance(value, str) else "None" if value is None else json.dumps(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."
