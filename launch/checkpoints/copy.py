"""`distrib checkpoints copy`: copies checkpoints to another directory or store.

The command compares every byte with its checksum on the way and commits the copy like any
checkpoint, as an attempt of its own. The copy therefore appears whole or not at all, and a run can
resume from it. A folder copied by other means is a checkpoint, too, but unverified, and a crash in
the middle leaves half of it.
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

from .errors import translate_read_errors, translate_storage_errors
from .lookup import COMMITTED, choose, list_checkpoints, require_checkpoints
from .options import add_command, add_second_storage_options, open_run, second_location, step


def add_commands(commands: Any) -> None:
    """Add `copy`."""
    text = "copy checkpoints to another directory or store, and verify every byte"
    command = add_command(commands, "copy", _copy, text)
    command.add_argument("target", metavar="TARGET", help="path or URL of another directory")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--step", type=step, metavar="STEP", help="copy this step (newest)")
    which.add_argument("--all", action="store_true", help="copy all committed ones")
    text = "copy even if a run in TARGET has not ended; a live run stops at its next save"
    command.add_argument("--force", action="store_true", help=text)
    add_second_storage_options(command, "--target-storage-options", "TARGET")


def _copy(options: argparse.Namespace) -> int:
    source = open_run(options)
    target = CheckpointDirectory(second_location(options, options.target, "target"))
    if target.location == source.location:
        raise ConfigurationError(f"`target`: {options.target} is the source directory.")
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
    _print(_rows(chosen, missing, target), options.json)
    return EXIT_FINISHED


def _rows(
    chosen: list[StoredCheckpoint], copied: list[StoredCheckpoint], target: CheckpointDirectory
) -> list[dict[str, Any]]:
    return [
        {
            "step": stored.manifest.step,
            "path": str(target.location / str(stored.manifest.step)),
            "bytes": stored.manifest.size,
            "copied": stored in copied,
        }
        for stored in chosen
    ]


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        verb = "copied to" if row["copied"] else "already exists:"
        print(f"{row['step']} {verb} {row['path']} ({format_size(row['bytes'])})")


def _all(source: CheckpointDirectory) -> list[StoredCheckpoint]:
    found = require_checkpoints(source)
    return [one.stored for one in found if one.stored and one.state == COMMITTED]


def _missing(chosen: list[StoredCheckpoint], target: CheckpointDirectory) -> list[StoredCheckpoint]:
    """Return the chosen checkpoints that the target does not have.

    Raises:
        ConfigurationError: If the target has one of the steps with other content.
    """
    there = {one.step: one for one in list_checkpoints(target)}
    missing = []
    for stored in chosen:
        found = there.get(stored.manifest.step)
        if found is None:
            missing.append(stored)
        elif found.stored is None or found.stored.manifest.files != stored.manifest.files:
            raise ConfigurationError(
                f"{found.location} exists and differs from {stored.location}. Nothing was copied. "
                "Remove it, or copy to another directory."
            )
    return missing


def _check_ended(target: CheckpointDirectory) -> None:
    """Refuse a target whose run may be alive. A local run was found out by its lock."""
    with translate_storage_errors(target.location):
        entry = attempts.newest(target.location)
    if target.location.local is None and entry is not None and entry.end is None:
        raise ConfigurationError(
            f"Attempt {entry.attempt} of the run in {target.location} (pid {entry.pid} on "
            f"{entry.host}) has not ended. The copy would supersede it, and it would stop. Stop "
            "the run first or, if it is dead, copy with --force."
        )


def _commit_all(missing: list[StoredCheckpoint], target: CheckpointDirectory) -> None:
    with translate_storage_errors(target.location):
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
    """Yield all files of a checkpoint, verified, a few at a time to bound the memory."""
    if stored.manifest.format < FORMAT:  # Orbax wrote it, for local disks only.
        with translate_read_errors(stored):
            loaded = stored.read()
        yield orbax_format.files(loaded.arrays, loaded.training)
        return
    entries = stored.manifest.files
    for start in range(0, len(entries), WORKERS):
        some = entries[start : start + WORKERS]
        with translate_read_errors(stored):
            contents = transfer.read(some, stored.root, None, {})
        yield [
            DataFile(entry.path, entry.size, [(0, np.frombuffer(contents[entry.path], np.uint8))])
            for entry in some
        ]
