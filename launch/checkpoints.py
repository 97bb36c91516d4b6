"""`distrib checkpoints`: which checkpoints a run has, and whether they are sound."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from distrib.checkpoint import manifest
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.errors import EXIT_FINISHED, EXIT_NO_LOADABLE_CHECKPOINT, ConfigurationError
from distrib.store import local_path


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `distrib checkpoints`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, check, text in (
        ("ls", False, "list the committed checkpoints"),
        ("verify", True, "read every byte and compare it with the checksums"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("directory", help="what the script gave to BackupAndRestore")
        command.add_argument("--json", action="store_true", help="for programs")
        command.set_defaults(run=_list, check=check)


def _list(options: argparse.Namespace) -> int:
    directory = CheckpointDirectory(local_path(options.directory, "directory"))
    if not directory.path.is_dir():
        raise ConfigurationError(f"{directory.path} does not exist: no run has saved there.")
    rows = [_row(directory.step_path(step), options.check) for step in directory.steps()]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        _print_table(rows)
    damaged = any(row["state"] == "damaged" for row in rows)
    return EXIT_NO_LOADABLE_CHECKPOINT if damaged else EXIT_FINISHED


def _row(path: Path, check: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"step": int(path.name), "path": str(path)}
    try:
        found = manifest.verify(path) if check else manifest.read(path)
    except manifest.DamagedCheckpointError as error:
        return {**row, "state": "damaged", "error": str(error)}
    return {
        **row,
        "state": "sound" if check else "committed",
        "epoch": found.epoch,
        "batch": found.batch,
        "created": found.created,
        "bytes": found.size,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'step':>10} {'epoch':>6} {'batch':>8} {'age':>8} {'size':>10}  state")
    for row in rows:
        if "error" in row:
            print(f"{row['step']:>10} {'':>6} {'':>8} {'':>8} {'':>10}  damaged: {row['error']}")
            continue
        age = _age(time.time() - row["created"])
        size = f"{row['bytes'] / 2**20:.1f} MiB"
        print(
            f"{row['step']:>10} {row['epoch']:>6} {row['batch']:>8} {age:>8} {size:>10}  "
            f"{row['state']}"
        )


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
