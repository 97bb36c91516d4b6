"""`distrib checkpoints show`: everything that a checkpoint says of itself, but for the numbers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from typing import Any

import ml_dtypes  # noqa: F401  (makes numpy know bfloat16 and its like by name)
import numpy as np

from distrib.checkpoint import attempts
from distrib.checkpoint.attempts import Entry
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.errors import EXIT_FINISHED
from distrib.units import format_size

from ..tables import age, date, print_table
from .lookup import COMMITTED, LATE, add_command, choose, open_run, plainly, reading, step

# Of the states of callbacks, what is none.
_NOT_CALLBACKS = {"random generators", "stop wish"}


def add_commands(commands: Any) -> None:
    """Add `show`."""
    command = add_command(commands, "show", _show, "show what a checkpoint holds")
    command.add_argument("step", nargs="?", type=step, metavar="STEP", help="which one (newest)")


def _show(options: argparse.Namespace) -> int:
    directory = open_run(options)
    stored = choose(directory, options.step)
    with reading(stored):
        training = stored.read_training()
    with plainly(directory.location):
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
    """Return what is worth seeing of a checkpoint, JSON-able.

    Args:
        stored: The checkpoint.
        training: Its JSON item.
        entry: What the ledger says of the attempt that wrote it, if it does.
    """
    manifest = stored.manifest
    state = training.get("state", {})
    config = training.get("model")
    return {
        "path": str(stored.location),
        "state": LATE if stored.late else COMMITTED,
        "position": training.get("position") or {"step": manifest.step},
        "created": manifest.created,
        "attempt": manifest.attempt,
        "world_size": manifest.world_size,
        "ledger": asdict(entry) if entry is not None else None,
        "model": config and {"class": config["class_name"], "name": config["config"].get("name")},
        "optimizer": state.get("optimizer"),
        "metrics": dict(manifest.metrics),
        "data": training.get("data"),
        "callbacks": [name for name in training.get("states", {}) if name not in _NOT_CALLBACKS],
        "versions": training.get("versions", {}),
        "fingerprint": manifest.fingerprint,
        "format": manifest.format,
        "files": len(manifest.files),
        "bytes": manifest.size,
        "variables": [_variable(variable) for variable in state.get("variables", [])],
    }


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
        "model": f"{model['class']} {model['name'] or ''}" if model else "without a config",
        "optimizer": described["optimizer"] or "none",
        "metrics": _pairs(described["metrics"]) or "none yet",
        "data": _pairs(described["data"] or {}) or "not a cluster.dataset",
        "callbacks": ", ".join(described["callbacks"]) or "none with state",
        "versions": _pairs(described["versions"]),
        "fingerprint": described["fingerprint"],
        "size": f"{size}, format {described['format']}",
    }
    for name, value in facts.items():
        print(f"{name:<12} {value}".rstrip())
    print()
    _print_variables(described["variables"])


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
        return f"{text}; the ledger says nothing of it"
    end = entry["end"] or f"not ended, last seen {age(entry['updated'])} ago"
    return f"{text}, pid {entry['pid']} on {entry['host']}, begun {date(entry['began'])}, {end}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
