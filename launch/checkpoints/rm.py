"""`distrib checkpoints rm`: removes checkpoints, but the newest one only with --force."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distrib.checkpoint import commit
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.errors import EXIT_FINISHED, ConfigurationError
from distrib.units import format_size

from .errors import translate_storage_errors
from .lookup import FoundCheckpoint, newest, pick, require_checkpoints
from .options import add_command, open_run, step_number


def add_commands(commands: Any) -> None:
    """Add `rm`."""
    command = add_command(commands, "rm", _remove, "remove checkpoints")
    command.add_argument("step", nargs="+", type=step_number, metavar="STEP", help="steps")
    command.add_argument("--force", action="store_true", help="remove the newest one, too")


def _remove(options: argparse.Namespace) -> int:
    directory = open_run(options)
    with locked(directory):
        found = require_checkpoints(directory)
        chosen = [pick(directory, found, step) for step in sorted(set(options.step))]
        last = newest(found) or found[-1]
        if last in chosen and not options.force:
            raise ConfigurationError(
                f"Nothing was removed: {last.location} is the newest checkpoint, which the run "
                "resumes from. Remove it with --force."
            )
        remove(directory, chosen, options.json)
    return EXIT_FINISHED


def remove(
    directory: CheckpointDirectory,
    chosen: Sequence[FoundCheckpoint],
    as_json: bool,
    dry_run: bool = False,
) -> None:
    """Remove checkpoints, and print each as soon as it is gone.

    Args:
        directory: Of the run.
        chosen: Checkpoints to remove.
        as_json: Whether to print JSON, at the end.
        dry_run: Whether to print only. Defaults to `False`.
    """
    if not chosen and not as_json:
        print("Nothing to remove.")
    rows = []
    for one in chosen:
        if not dry_run:
            with translate_storage_errors(one.location):
                commit.remove(directory.location, one.step)
        size = one.stored.manifest.size if one.stored else 0
        rows.append({"step": one.step, "path": str(one.location), "bytes": size})
        if not as_json:
            verb = "would remove" if dry_run else "removed"
            print(f"{verb} {one.location} ({format_size(size)})")
    if as_json:
        print(json.dumps(rows, indent=1))


@contextmanager
def locked(directory: CheckpointDirectory) -> Iterator[None]:
    """Hold the lock of a local directory, which a training process holds, too.

    Raises:
        ConfigurationError: If a process is training into the directory.
    """
    try:
        directory.lock()
    except ConfigurationError as error:
        raise ConfigurationError(f"Nothing was removed. {error}") from error
    try:
        yield
    finally:
        directory.unlock()
