"""The commit protocol: a checkpoint exists exactly if its manifest does.

Writing many files is not atomic, but creating one file is. So an attempt first writes the data
files, to a folder of its own. Once all are durable it creates the manifest, which has the checksum
of every data file, in one atomic operation:

    local disk    <step>/{arrays,training,...,manifest.json}
        The folder, including the manifest, is written as `.<step>.attempt-<n>/` and renamed.
        Renaming fails if the step exists.
    object store  <step>/attempt-<n>/{arrays,training,...} and <step>/manifest.json
        Object stores have no rename, so the data stay in the attempt's folder, and `root` in the
        manifest refers to it. The manifest is created exclusively if the store supports that.

A crash at any moment leaves either a checkpoint, or files without a manifest, which are not a
checkpoint.

Two chiefs: a chief that seemed dead may still be alive, on a host that lost its network or in a
process that was paused. It cannot damage anything, because it writes only to its own folders. It
cannot commit either: before each commit it checks whether a newer attempt has begun
(`attempts.py`), and stops if so. If it is delayed between this check and the commit, its checkpoint
is *late*: unknown to the newer attempt when that began. A late checkpoint is loaded only if no
other can be, with a warning, because it may also have been copied there by hand. The newer attempt
replaces it when it reaches the same step.

Orphaned folders have data that no manifest refers to. Those of earlier attempts may be removed:
their writers are dead or fenced off, and a writer whose files disappear fails without harm. An
attempt removes its own orphans when it ends, such as those of a removal that failed. Orphans of
newer attempts and quarantined (damaged) checkpoints are never removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from pathlib import Path

from distrib.checkpoint import legacy_orbax
from distrib.checkpoint import manifest as manifests
from distrib.checkpoint.manifest import Manifest
from distrib.errors import SupersededError
from distrib.storage.local_files import fsync
from distrib.storage.location import Location

QUARANTINE_SUFFIX = ".damaged"
_QUARANTINE_PREFIX = "damaged-"
_DRAFT = re.compile(r"\.(\d+)\.attempt-(\d+)")
_DATA_FOLDER = re.compile(r"attempt-(\d+)")


def draft(checkpoints: Location, step: int, attempt: int) -> Location:
    """Return the folder for an attempt's data of a step.

    On the local disk this removes the files of an earlier draft, because the whole folder becomes
    the checkpoint.
    """
    if checkpoints.local is None:
        return checkpoints / str(step) / f"attempt-{attempt}"
    location = checkpoints / f".{step}.attempt-{attempt}"
    location.remove_tree()
    return location


def data_root(checkpoints: Location, step: int, attempt: int) -> str:
    """Return the `Manifest.root` of a draft after its commit."""
    return "" if checkpoints.local is not None else f"attempt-{attempt}"


def publish(checkpoints: Location, manifest: Manifest) -> None:
    """Turn the draft into a checkpoint, durably.

    Raises:
        SupersededError: If a newer attempt has committed this step.
    """
    location = checkpoints / str(manifest.step)
    if checkpoints.local is not None:
        _publish_folder(checkpoints.local, location, manifest)
    elif not (location / manifests.NAME).create(manifest.encode()):
        _make_replaceable(checkpoints, manifest)
        (location / manifests.NAME).write_bytes(manifest.encode())


def read(checkpoints: Location, step: int) -> Manifest:
    """Read the manifest of a committed checkpoint.

    Raises:
        DamagedCheckpointError: If the manifest has changed since its commit.
        FileNotFoundError: If there is no manifest.
    """
    location = checkpoints / str(step) / manifests.NAME
    return manifests.decode(location.read_bytes(), location)


def remove(checkpoints: Location, step: int) -> None:
    """Remove a checkpoint, manifest first, so that a partial one never counts."""
    location = checkpoints / str(step)
    try:
        root = read(checkpoints, step).root
    except (manifests.DamagedCheckpointError, FileNotFoundError):
        root = ""
    (location / manifests.NAME).remove()
    (location if checkpoints.local is not None or not root else location / root).remove_tree()


def quarantine(checkpoints: Location, step: int, reason: str) -> Location:
    """Invalidate a damaged checkpoint, keep all of its files, and return where they are."""
    location = checkpoints / str(step)
    if checkpoints.local is not None:
        quarantined = _unused(checkpoints, f"{step}{QUARANTINE_SUFFIX}", "")
        os.rename(checkpoints.local / str(step), checkpoints.local / quarantined.name)
        fsync(checkpoints.local)
        return quarantined
    content = (location / manifests.NAME).read_bytes()
    marker = _unused(location, f"{_QUARANTINE_PREFIX}manifest", ".json")
    report = {"reason": reason, "manifest": content.decode(errors="replace")}
    marker.write_bytes(json.dumps(report, indent=1).encode())
    (location / manifests.NAME).remove()
    return marker


def quarantined(checkpoints: Location) -> list[Location]:
    """Return the quarantined checkpoints."""
    names = checkpoints.names()
    if checkpoints.local is not None:
        return [checkpoints / name for name in names if QUARANTINE_SUFFIX in name]
    return [
        checkpoints / name / child
        for name in names
        if name.isdecimal()
        for child in (checkpoints / name).names()
        if child.startswith(_QUARANTINE_PREFIX)
    ]


def orphaned_folders(checkpoints: Location, attempt: int) -> list[Location]:
    """Return the uncommitted data folders of attempts before the given number."""
    found = []
    for name in checkpoints.names():
        location = checkpoints / name
        old_draft = (match := _DRAFT.match(name)) is not None and int(match[2]) < attempt
        if old_draft or legacy_orbax.DRAFT_MARKER in name:
            found.append(location)
        elif name.isdecimal():
            found += _orphaned_folders_of_step(checkpoints, int(name), attempt)
    return found


def _orphaned_folders_of_step(checkpoints: Location, step: int, attempt: int) -> list[Location]:
    location = checkpoints / str(step)
    children = location.names()
    if any(child.startswith(_QUARANTINE_PREFIX) for child in children):
        return []
    committed = manifests.NAME in children
    if checkpoints.local is not None:
        # A commit renames the folder with its manifest, so this one was being removed, or is an
        # unfinished one of `legacy_orbax`.
        return [] if committed else [location]
    try:
        root = read(checkpoints, step).root if committed else None
    except manifests.DamagedCheckpointError:
        return []
    return [
        location / child
        for child in children
        if (match := _DATA_FOLDER.fullmatch(child)) is not None
        and int(match[1]) < attempt
        and child != root
    ]


def _publish_folder(checkpoints: Path, location: Location, manifest: Manifest) -> None:
    folder = checkpoints / f".{manifest.step}.attempt-{manifest.attempt}"
    (folder / manifests.NAME).write_bytes(manifest.encode())
    fsync(folder / manifests.NAME)
    fsync(folder)
    target = checkpoints / str(manifest.step)
    if target.exists():
        _make_replaceable(location.parent, manifest)
    if target.exists():
        replaced = checkpoints / f"{folder.name}.replaced"
        os.rename(target, replaced)
        os.rename(folder, target)
        shutil.rmtree(replaced)
    else:
        os.rename(folder, target)
    fsync(checkpoints)


def _make_replaceable(checkpoints: Location, manifest: Manifest) -> None:
    """Check that the existing checkpoint of a step is a late one; quarantine a damaged one."""
    try:
        existing = read(checkpoints, manifest.step)
    except FileNotFoundError:
        return
    except manifests.DamagedCheckpointError as error:
        place = quarantine(checkpoints, manifest.step, str(error))
        warnings.warn(
            f"Checkpoint {manifest.step} was damaged: {error}. It was quarantined as {place}; "
            "the new checkpoint of this step takes its place.",
            stacklevel=2,
        )
        return
    if existing.attempt > manifest.attempt:
        raise SupersededError(
            f"Attempt {existing.attempt} of this run has committed step {existing.step} to "
            f"{checkpoints / str(existing.step)}. So attempt {manifest.attempt}, which is this "
            "process, has been superseded and stops. No checkpoint was damaged."
        )


def _unused(folder: Location, stem: str, suffix: str) -> Location:
    """Return a location in `folder` that does not exist."""
    existing = set(folder.names())
    number = 1
    name = f"{stem}{suffix}"
    while name in existing:
        number += 1
        name = f"{stem}-{number}{suffix}"
    return folder / name
