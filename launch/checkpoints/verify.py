"""`distrib checkpoints verify`: reads every byte and compares it with the checksums."""

from __future__ import annotations

import argparse
import json
from typing import Any

from distrib.errors import EXIT_FINISHED, EXIT_NO_LOADABLE_CHECKPOINT, NoLoadableCheckpointError

from ..tables import print_table
from .errors import RemovedError, translate_read_errors
from .lookup import DAMAGED, SUPERSEDED, FoundCheckpoint, pick, require_checkpoints
from .ls import checkpoint_row, format_bytes, format_state
from .options import add_command, open_run, step


def add_commands(commands: Any) -> None:
    """Add `verify`."""
    text = "read every byte and compare it with the checksums; exit code 65 if one is damaged"
    command = add_command(commands, "verify", _verify, text)
    which = command.add_mutually_exclusive_group()
    which.add_argument("step", nargs="?", type=step, metavar="STEP", help="a step (newest)")
    which.add_argument("--all", action="store_true", help="verify all that have a manifest")


def _verify(options: argparse.Namespace) -> int:
    directory = open_run(options)
    found = require_checkpoints(directory)
    if options.step is not None:
        found = [pick(directory, found, options.step)]
    elif not options.all:
        # Not `newest`, which skips one whose manifest is damaged.
        found = ([one for one in found if one.state != SUPERSEDED] or found)[-1:]
    rows = [_verified(one) for one in found]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        cells = [[str(row["step"]), format_bytes(row), format_state(row)] for row in rows]
        print_table([">step", ">size", "state"], cells)
    damaged = any(row["state"] in ("damaged", DAMAGED) for row in rows)
    return EXIT_NO_LOADABLE_CHECKPOINT if damaged else EXIT_FINISHED


def _verified(found: FoundCheckpoint) -> dict[str, Any]:
    """Return a checkpoint's row with the state that its bytes are in."""
    row = checkpoint_row(found)
    if found.stored is None:
        return row
    try:
        with translate_read_errors(found.stored):
            found.stored.verify()
    except RemovedError:
        return {**row, "state": "removed meanwhile"}
    except NoLoadableCheckpointError as error:
        return {**row, "state": "damaged", "error": str(error.__cause__)}
    return {**row, "state": "sound"}
