"""`distrib checkpoints ls`: lists the checkpoints of a run.

The command reads the manifests only, so it is quick; `verify` reads the data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from distrib.errors import EXIT_FINISHED
from distrib.units import format_size

from ..tables import age, print_table
from .lookup import SUPERSEDED, FoundCheckpoint, list_checkpoints, newest, quarantined
from .options import add_command, open_run

# The first of these that a checkpoint has is shown: it tells most about the state of a run.
_METRICS = ("val_loss", "loss")


def add_commands(commands: Any) -> None:
    """Add `ls`."""
    command = add_command(commands, "ls", _list, "list the checkpoints")
    command.add_argument("--metric", metavar="NAME", help="show this metric (val_loss, else loss)")


def _list(options: argparse.Namespace) -> int:
    directory = open_run(options)
    found = list_checkpoints(directory)
    best = newest(found)
    found = sorted([*found, *quarantined(directory)], key=lambda one: one.step)
    rows = [{**checkpoint_row(one), "newest": one is best} for one in found]
    if options.json:
        print(json.dumps(rows, indent=1))
    elif rows:
        _print_list(rows, options.metric)
    else:
        print(f"There is no checkpoint in {directory.location}.")
    return EXIT_FINISHED


def checkpoint_row(found: FoundCheckpoint) -> dict[str, Any]:
    """Return what the manifest says about a checkpoint, JSON-able."""
    row: dict[str, Any] = {"step": found.step, "path": str(found.location), "state": found.state}
    if found.stored is None:
        return {**row, "error": found.error} if found.error else row
    manifest = found.stored.manifest
    return {
        **row,
        "epoch": manifest.epoch,
        "batch": manifest.batch,
        "created": manifest.created,
        "bytes": manifest.size,
        "attempt": manifest.attempt,
        "metrics": dict(manifest.metrics),
    }


def format_state(row: Mapping[str, Any]) -> str:
    """Return the state of a `checkpoint_row` with its reason."""
    state = str(row["state"])
    if "error" in row:
        return f"{state}: {row['error']}"
    if row.get("newest"):
        return f"{state}, newest"
    if state == SUPERSEDED:
        return f"{state}: by a superseded attempt, or copied there by hand"
    return state if "bytes" in row else f"{state}: {row['path']}"


def format_bytes(row: Mapping[str, Any]) -> str:
    """Return the size of a `checkpoint_row`; empty if it has none."""
    return format_size(row["bytes"]) if "bytes" in row else ""


def _print_list(rows: Sequence[Mapping[str, Any]], metric: str | None) -> None:
    headers = [">step", ">epoch", ">batch", ">age", ">size", metric or "metric", ">attempt"]
    cells = []
    for row in rows:
        known = [str(row.get("epoch", "")), str(row.get("batch", ""))]
        when = age(row["created"]) if "created" in row else ""
        attempt = str(row.get("attempt", ""))
        shown = _metric(row.get("metrics", {}), metric)
        state = format_state(row)
        cells.append([str(row["step"]), *known, when, format_bytes(row), shown, attempt, state])
    print_table([*headers, "state"], cells)


def _metric(metrics: Mapping[str, float], name: str | None) -> str:
    if name is not None:
        return f"{metrics[name]:.6g}" if name in metrics else ""
    return next((f"{known} {metrics[known]:.6g}" for known in _METRICS if known in metrics), "")
