"""`distrib checkpoints show`: describes a checkpoint, without the values of its arrays."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import prod
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and the like with NumPy)
import numpy as np

from distrib.checkpoint import attempts, training_item
from distrib.checkpoint.attempts import Entry
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.errors import EXIT_FINISHED
from distrib.units import format_size

from ..tables import age, date, print_table
from .errors import translate_read_errors, translate_storage_errors
from .lookup import choose, state_of
from .options import add_command, open_run, step


def add_commands(commands: Any) -> None:
    """Add `show`."""
    command = add_command(commands, "show", _show, "describe a checkpoint")
    command.add_argument("step", nargs="?", type=step, metavar="STEP", help="a step (newest)")


def _show(options: argparse.Namespace) -> int:
    directory = open_run(options)
    stored = choose(directory, options.step)
    with translate_read_errors(stored):
        training = stored.read_training()
    with translate_storage_errors(directory.location):
        entry = attempts.read(directory.location, stored.manifest.attempt)
    described = describe(stored, training, entry)
    if options.json:
        print(json.dumps(described, indent=1))
    else:
        _print(described)
    return EXIT_FINISHED


def describe(
    stored: StoredCheckpoint, training: Mapping[str, Any], entry: Entry | None
) -> dict[str, Any]:
    """Return a description of a checkpoint, JSON-able.

    Args:
        stored: The checkpoint.
        training: Its JSON item.
        entry: The ledger's entry of the attempt that wrote it; `None` if it has none.
    """
    manifest = stored.manifest
    state = training.get(training_item.VARIABLES_STATE, {})
    config = training.get(training_item.MODEL_CONFIG)
    return {
        "path": str(stored.location),
        "state": state_of(stored),
        "position": training.get(training_item.POSITION) or {"step": manifest.step},
        "created": manifest.created,
        "attempt": manifest.attempt,
        "world_size": manifest.world_size,
        "ledger": asdict(entry) if entry is not None else None,
        "model": config and {"class": config["class_name"], "name": config["config"].get("name")},
        "optimizer": state.get("optimizer"),
        "metrics": dict(manifest.metrics),
        "data": training.get(training_item.DATA),
        "callbacks": _callbacks(training),
        "script": training.get(training_item.RECORD),
        "versions": training.get(training_item.VERSIONS, {}),
        "fingerprint": manifest.fingerprint,
        "format": manifest.format,
        "files": len(manifest.files),
        "bytes": manifest.size,
        "variables": [_variable(variable) for variable in state.get("variables", [])],
    }


def _callbacks(training: Mapping[str, Any]) -> list[str]:
    names = training.get(training_item.STATES, {})
    return [name for name in names if name not in training_item.NOT_CALLBACKS]


def _variable(described: Mapping[str, Any]) -> dict[str, Any]:
    copies = len(described["names"])
    size = prod(described["shape"]) * np.dtype(described["dtype"]).itemsize * copies
    kept = {name: described[name] for name in ("group", "path", "shape", "dtype")}
    return {**kept, "copies": copies, "bytes": size}


def _print(described: Mapping[str, Any]) -> None:
    model = described["model"]
    size = f"{described['files']} files, {format_size(described['bytes'])}"
    facts = {
        "checkpoint": f"{described['path']} ({described['state']})",
        "position": _pairs(described["position"]),
        "saved": f"{date(described['created'])} ({age(described['created'])} ago)",
        "attempt": _attempt(described),
        "model": f"{model['class']} {model['name'] or ''}" if model else "no config saved",
        "optimizer": described["optimizer"] or "none",
        "metrics": _pairs(described["metrics"]) or "none",
        "data": _pairs(described["data"] or {}) or "not a cluster.dataset",
        "callbacks": ", ".join(described["callbacks"]) or "none has state",
        "versions": _pairs(described["versions"]),
        "fingerprint": described["fingerprint"],
        "size": f"{size}, format {described['format']}",
    }
    for name, value in facts.items():
        print(f"{name:<12} {value}".rstrip())
    _print_script(described["script"])
    print()
    _print_variables(described["variables"])


def _print_script(record: Mapping[str, Any] | None) -> None:
    """Print what the run is made of, but for the layers, which may be hundreds."""
    rows = [
        [name, value if isinstance(value, str) else json.dumps(value)]
        for name, value in _flat(record or {}, "")
        if value is not None and not name.startswith(("layers.", "callbacks.BackupAndRestore."))
    ]
    if rows:
        print()
        print_table(["script", "value"], rows)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _print_variables(variables: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            variable["group"],
            variable["path"],
            str(tuple(variable["shape"])),
            variable["dtype"],
            str(variable["copies"]),
            format_size(variable["bytes"]),
        ]
        for variable in variables
    ]
    print_table(["group", "variable", "shape", "dtype", ">copies", ">size"], rows)


def _attempt(described: Mapping[str, Any]) -> str:
    size = described["world_size"]
    text = f"{described['attempt']}, {size} process{'es' if size > 1 else ''}"
    entry = described["ledger"]
    if entry is None or not entry["token"]:
        return f"{text}; not in the ledger"
    end = entry["end"] or f"not ended, last seen {age(entry['updated'])} ago"
    return f"{text}, pid {entry['pid']} on {entry['host']}, begun {date(entry['began'])}, {end}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
