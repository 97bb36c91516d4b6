"""`distrib checkpoints ls` and `verify`: which checkpoints a run has, and whether they are sound.

A listing reads the manifests only, so it is quick. Whether the bytes are still those that were
committed is known when all of them have been read, which `verify` does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from distrib.errors import EXIT_FINISHED, EXIT_NO_LOADABLE_CHECKPOINT, NoLoadableCheckpointError
from distrib.units import format_size

from ..tables import age, print_table
from .lookup import (
    DAMAGED,
    LATE,
    Found,
    RemovedError,
    add_command,
    committed,
    existing,
    newest,
    open_run,
    pick,
    reading,
    set_aside,
    step,
)

# Of the metrics, the first that there is tells most about the state of a run.
_METRICS = ("val_loss", "loss")


def add_commands(commands: Any) -> None:
    """Add `ls` and `verify`."""
    command = add_command(commands, "ls", _list, "list the checkpoints")
    command.add_argument("--metric", metavar="NAME", help="to show (val_loss, else loss)")
    text = "read every byte and compare it with the checksums; exit code 65 if one is damaged"
    command = add_command(commands, "verify", _verify, text)
    which = command.add_mutually_exclusive_group()
    which.add_argument("step", nargs="?", type=step, metavar="STEP", help="which one (newest)")
    which.add_argument("--all", action="store_true", help="all that have a manifest")


def _list(options: argparse.Namespace) -> int:
    directory = open_run(options)
    found = committed(directory)
    best = newest(found)
    found = sorted([*found, *set_aside(directory)], key=lambda one: one.step)
    rows = [{**_row(one), "newest": one is best} for one in found]
    if options.json:
        print(json.dumps(rows, indent=1))
    elif rows:
        _print_list(rows, options.metric)
    else:
        print(f"There is no checkpoint in {directory.location}.")
    return EXIT_FINISHED


def _verify(options: argparse.Namespace) -> int:
    directory = open_run(options)
    found = existing(directory)
    if options.step is not None:
        found = [pick(directory, found, options.step)]
    elif not options.all:
        # Not `newest`, which passes over one whose manifest is damaged.
        found = ([one for one in found if one.state != LATE] or found)[-1:]
    rows = [_checked(one) for one in found]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        cells = [[str(row["step"]), _size(row), _shown_state(row)] for row in rows]
        print_table([">step", ">size", "state"], cells)
    damaged = any(row["state"] in ("damaged", DAMAGED) for row in rows)
    return EXIT_NO_LOADABLE_CHECKPOINT if damaged else EXIT_FINISHED


def _row(found: Found) -> dict[str, Any]:
    row: dict[str, Any] = {"step": found.step, "path": str(found.place), "state": found.state}
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


def _checked(found: Found) -> dict[str, Any]:
    row = _row(found)
    if found.stored is None:
        return row
    try:
        with reading(found.stored):
            found.stored.verify()
    except RemovedError:
        return {**row, "state": "removed meanwhile"}
    except NoLoadableCheckpointError as error:
        return {**row, "state": "damaged", "error": str(error.__cause__)}
    return {**row, "state": "sound"}


def _print_list(rows: Sequence[Mapping[str, Any]], metric: str | None) -> None:
    headers = [">step", ">epoch", ">batch", ">age", ">size", metric or "metric", ">attempt"]
    cells = []
    for row in rows:
        known = [str(row.get("epoch", "")), str(row.get("batch", ""))]
        when = age(row["created"]) if "created" in row else ""
        attempt = str(row.get("attempt", ""))
        shown = _metric(row.get("metrics", {}), metric)
        state = _shown_state(row)
        cells.append([str(row["step"]), *known, when, _size(row), shown, attempt, state])
    print_table([*headers, "state"], cells)


def _shown_state(row: Mapping[str, Any]) -> str:
    state = str(row["state"])
    if "error" in row:
        return f"{state}: {row['error']}"
    if row.get("newest"):
        return f"{state}, newest"
    if state == LATE:
        return f"{state}: by a superseded attempt, or put there by hand"
    return state if "bytes" in row else f"{state}: {row['path']}"


def _metric(metrics: Mapping[str, float], name: str | None) -> str:
    if name is not None:
        return f"{metrics[name]:.6g}" if name in metrics else ""
    return next((f"{known} {metrics[known]:.6g}" for known in _METRICS if known in metrics), "")


def _size(row: Mapping[str, Any]) -> str:
    return format_size(row["bytes"]) if "bytes" in row else ""
