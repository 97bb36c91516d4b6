"""`distrib checkpoints copy`: checkpoints from one store to another, none of which can get lost.

Every byte is compared with its checksum on the way, and the copy is committed at its target like
any checkpoint, as an attempt of its own. So it appears there whole or not at all, and a run can go
on from it. A folder that is copied by other means is a checkpoint as well, but nobody has looked at
its bytes, and a crash in the middle leaves half of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from distrib.checkpoint import attempts, commit, orbax_format, transfer
from distrib.checkpoint.attempts import FINISHED, Attempt, Commit
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.manifest import FORMAT, FileEntry
from distrib.checkpoint.orbax_format import DataFile
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.checkpoint.transfer import WORKERS
from distrib.errors import EXIT_FINISHED, ConfigurationError
from distrib.storage.write_check import check_writable
from distrib.units import format_size

from .lookup import (
    COMMITTED,
    add_command,
    add_second_storage_options,
    choose,
    committed,
    existing,
    open_run,
    plainly,
    reading,
    second_place,
    step,
)


def add_commands(commands: Any) -> None:
    """Add `copy`."""
    text = "copy checkpoints to another directory or store, checking every byte"
    command = add_command(commands, "copy", _copy, text)
    command.add_argument("target", metavar="TARGET", help="another directory: path or URL")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--step", type=step, metavar="STEP", help="which one (newest)")
    which.add_argument("--all", action="store_true", help="all that count")
    text = "copy even if a run in TARGET has not ended; should it be alive, it has to stop"
    command.add_argument("--force", action="store_true", help=text)
    add_second_storage_options(command, "--target-storage-options", "TARGET")


def _copy(options: argparse.Namespace) -> int:
    source = open_run(options)
    target = CheckpointDirectory(second_place(options, options.target, "target"))
    if target.location == source.location:
        raise ConfigurationError(f"`target`: {options.target} is where they are already.")
    chosen = _all(source) if options.all else [choose(source, options.step)]
    check_writable(target.location, "target")
    target.lock()
    try:
        missing = _missing(chosen, target)
        if missing:
            if not options.force:
                _check_ended(target)
            _commit_all(missing, target)
    finally:
        target.unlock()
    rows: list[dict[str, Any]] = [
        {
            "step": stored.manifest.step,
            "path": str(target.location / str(stored.manifest.step)),
            "bytes": stored.manifest.size,
            "copied": stored in missing,
        }
        for stored in chosen
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return EXIT_FINISHED
    for row in rows:
        what = "copied to" if row["copied"] else "is there already:"
        print(f"{row['step']} {what} {row['path']} ({format_size(row['bytes'])})")
    return EXIT_FINISHED


def _all(source: CheckpointDirectory) -> list[StoredCheckpoint]:
    return [one.stored for one in existing(source) if one.stored and one.state == COMMITTED]


def _missing(chosen: list[StoredCheckpoint], target: CheckpointDirectory) -> list[StoredCheckpoint]:
    """Return those that are not at the target yet.

    Raises:
        ConfigurationError: If one of the steps is there with other content.
    """
    there = {one.step: one for one in committed(target)}
    missing = []
    for stored in chosen:
        found = there.get(stored.manifest.step)
        if found is None:
            missing.append(stored)
        elif found.stored is None or found.stored.manifest.files != stored.manifest.files:
            raise ConfigurationError(
                f"{found.place} exists and is another checkpoint than {stored.location}. "
                f"Nothing was copied. Remove it, or copy to another directory."
            )
    return missing


def _check_ended(target: CheckpointDirectory) -> None:
    """Refuse to take a directory away from a run that may be alive; a local one was locked."""
    with plainly(target.location):
        entry = attempts.newest(target.location)
    if target.location.local is None and entry is not None and entry.end is None:
        raise ConfigurationError(
            f"Attempt {entry.attempt} of the run in {target.location} (pid {entry.pid} on "
            f"{entry.host}) has not ended. Should it be alive, it would find that this copy has "
            "taken over, and stop. Stop it first; or, if it is dead, copy with --force."
        )


def _commit_all(missing: list[StoredCheckpoint], target: CheckpointDirectory) -> None:
    with plainly(target.location):
        attempt = target.begin(world_size=1)
        try:
            for stored in missing:
                _commit(stored, target, attempt)
        finally:
            attempt.ended(FINISHED)


def _commit(stored: StoredCheckpoint, target: CheckpointDirectory, attempt: Attempt) -> None:
    step, number = stored.manifest.step, attempt.number
    draft = commit.draft(target.location, step, number)
    written: list[FileEntry] = []
    for files in _files(stored):
        written += transfer.write(files, draft, None)
    manifest = replace(
        stored.manifest,
        files=tuple(sorted(written, key=lambda entry: entry.path)),
        attempt=number,
        root=commit.data_root(target.location, step, number),
        format=FORMAT,
    )
    attempt.check()
    commit.publish(target.location, manifest)
    attempt.committed(Commit(step, number))


def _files(stored: StoredCheckpoint) -> Iterator[list[DataFile]]:
    """Yield all files of a checkpoint, verified, a few at a time: what is in memory is bounded."""
    if stored.manifest.format < FORMAT:  # Orbax wrote it, and could read it on a local disk only.
        with reading(stored):
            loaded = stored.read()
        yield orbax_format.files(loaded.arrays, loaded.training)
        return
    entries = stored.manifest.files
    for start in range(0, len(entries), WORKERS):
        some = entries[start : start + WORKERS]
        with reading(stored):
            contents = transfer.read(some, stored.root, None, {})
        yield [
            DataFile(entry.path, entry.size, [(0, np.frombuffer(contents[entry.path], np.uint8))])
            for entry in some
        ]
