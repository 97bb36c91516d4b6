"""Compares what the ranks are about to do, so that a difference is refused instead of hanging.

Ranks that call `fit` with different arguments make different collectives, and wait for each other
without end. So before a `fit`, and before an `evaluate` that all ranks share, each rank describes
its call, and the ranks exchange digests of the descriptions: one small allgather. Only what differs
is exchanged in full, for the message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from distrib.collectives import Collectives
from distrib.errors import ConfigurationError

_MAX_SHOWN = 3
_MAX_LENGTH = 200
_MISSING = "missing"
# Key of a dict that holds the arguments of an object of this class.
CLASS = "class"


def gather_aspects(aspects: Mapping[str, Any], collectives: Collectives) -> dict[str, list[Any]]:
    """Exchange descriptions between the ranks. All ranks call it together.

    Args:
        aspects: What this rank does: names to JSON values.
        collectives: Of the job.

    Returns:
        Each aspect's values by rank; `None` for a rank that lacks it.
    """
    digests = collectives.allgather({name: _digest(value) for name, value in aspects.items()})
    names = list(dict.fromkeys(name for digest in digests for name in digest))
    alike = [name for name in names if len({digest.get(name) for digest in digests}) == 1]
    values = {name: [aspects[name]] * len(digests) for name in alike}
    if len(alike) < len(names):
        mine = {name: value for name, value in aspects.items() if name not in alike}
        for_all = collectives.allgather(mine)
        for name in names:
            if name not in alike:
                values[name] = [theirs.get(name) for theirs in for_all]
    return values


def refuse_differences(values: Mapping[str, Sequence[Any]], advice: str) -> None:
    """Refuse aspects that differ between the ranks.

    Args:
        values: Each aspect's values by rank.
        advice: What to do about a difference; ends the message.

    Raises:
        ConfigurationError: Names the first differences by rank.
    """
    found = [line for name, by_rank in values.items() for line in _differences(name, by_rank)]
    if found:
        rest = f", and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
        raise ConfigurationError(
            f"The ranks differ: {'; '.join(found[:_MAX_SHOWN])}{rest}. {advice}"
        )


def ranks(numbers: Iterable[int]) -> str:
    """Return ranks in words: `rank 0`, `ranks 1, 2`, `ranks 1-7`."""
    found = list(numbers)
    if len(found) == 1:
        return f"rank {found[0]}"
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"ranks {found[0]}-{found[-1]}"
    return f"ranks {', '.join(map(str, found))}"


def plain(value: Any, ignored: frozenset[str] = frozenset()) -> Any:
    """Return a value as JSON, the same on all ranks if they were given the same.

    Args:
        value: Any object. One that JSON lacks becomes the name of its type.
        ignored: Keys of dicts that are left out, at any depth. Defaults to none.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(value.tobytes()).hexdigest()[:8]
        return f"array {value.shape} {value.dtype} {digest}"
    if isinstance(value, Mapping):
        if value.get("class_name") == "__lambda__":
            return "lambda"  # Keras's config holds its code, with the path of the script.
        items = ((str(key), each) for key, each in value.items())
        return {key: plain(each, ignored) for key, each in items if key not in ignored}
    if isinstance(value, list | tuple):
        return [plain(each, ignored) for each in value]
    return type(value).__name__


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _differences(path: str, by_rank: Sequence[Any]) -> Iterator[str]:
    """Yield a line for each leaf of nested values that is not the same on all ranks."""
    if len({_digest(value) for value in by_rank}) == 1:
        return
    if all(isinstance(value, dict) for value in by_rank):
        keys = list(dict.fromkeys(key for value in by_rank for key in value))
        if len({value.get(CLASS) for value in by_rank}) > 1:
            keys = [CLASS]  # Other classes have other arguments.
        for key in keys:
            yield from _differences(f"{path}.{key}", [v.get(key, _MISSING) for v in by_rank])
    elif all(isinstance(v, list) for v in by_rank) and len({len(v) for v in by_rank}) == 1:
        for number, items in enumerate(zip(*by_rank, strict=True)):
            yield from _differences(f"{path}[{number}]", items)
    else:
        texts = [_text(value) for value in by_rank]
        groups = [
            f"{text} on {ranks(i for i, other in enumerate(texts) if other == text)}"
            for text in dict.fromkeys(texts)
        ]
        yield f"`{path}` is {', '.join(groups)}"


def _text(value: Any) -> str:
    if value == _MISSING:
        return _MISSING
    if isinstance(value, dict):
        return str(value.get(CLASS, "given"))
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
