"""The commit protocol: a checkpoint exists when its manifest does, and not before.

Writing many files cannot be atomic; making one appear can. So the data files are written first, in
a folder that no other attempt writes to, and when all of them are durable the manifest, which
vouches for every byte of them, appears in one atomic operation:

    local disk    <step>/{arrays,training,...,manifest.json}
        written as `.<step>.attempt-<n>/`, manifest and all, and renamed as a whole. Renaming fails
        if the step is there already.
    object store  <step>/attempt-<n>/{arrays,training,...} and <step>/manifest.json
        Nothing can be renamed there, so the data stay in the attempt's folder and the manifest
        says so (`root`). It is put with the condition that it does not exist, where the store knows
        conditions.

A crash at any moment leaves a checkpoint, or files without a manifest, which are not one.

Two chiefs. A chief that was thought dead may still be alive, on a host that was cut off or a
process that was stopped. It cannot damage anything, because it writes to folders of its own only.
It cannot commit either: before each commit it looks whether a newer attempt has begun
(`attempts.py`) and stops if so. If it commits nevertheless, because it was held up between looking
and committing, the checkpoint is *late*: not among those that the newer attempt knew when it began.
A late one is used only if nothing else can be loaded, with a warning, because such a one may also
have been put there by hand. The newer attempt replaces it when it reaches the same step.

Leftovers are folders of data that no manifest refers to. Those of attempts that have ended may be
collected: their writers are dead or fenced off, and a writer whose files disappear fails without
harm. An attempt collects its own when it ends, such as what a removal that failed has left. Those
of newer attempts are never touched. What was set aside as damaged is never removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from distrib.checkpoint import manifest as manifests
from distrib.checkpoint.manifest import Manifest
from distrib.errors import SupersededError
from distrib.storage.local_files import fsync
from distrib.storage.location import Location

DAMAGED = ".damaged"
_MARKER = "damaged-"
_DRAFT = re.compile(r"\.(\d+)\.attempt-(\d+)")
_DATA = re.compile(r"attempt-(\d+)")
_ORBAX_DRAFT = ".orbax-checkpoint-tmp"  # Of a version that let Orbax write.


def draft(checkpoints: Location, step: int, attempt: int) -> Location:
    """Return the folder for an attempt's data of a step.

    An earlier try's files are removed, where the folder will be the checkpoint.
    """
    if checkpoints.local is None:
        return checkpoints / str(step) / f"attempt-{attempt}"
    place = checkpoints / f".{step}.attempt-{attempt}"
    place.remove_tree()
    return place


def root_of(checkpoints: Location, step: int, attempt: int) -> str:
    """Return the `Manifest.root` that a draft will have when it is committed."""
    return "" if checkpoints.local is not None else f"attempt-{attempt}"


def publish(checkpoints: Location, manifest: Manifest) -> None:
    """Make the draft a checkpoint, durably.

    Raises:
        SupersededError: If a newer attempt has committed this step.
    """
    place = checkpoints / str(manifest.step)
    if checkpoints.local is not None:
        _publish_folder(checkpoints.local, place, manifest)
    elif not (place / manifests.NAME).create(manifest.encode()):
        _check_older(place, manifest)
        (place / manifests.NAME).write_bytes(manifest.encode())


def read(checkpoints: Location, step: int) -> Manifest:
    """Read the manifest of a committed checkpoint.

    Raises:
        DamagedCheckpointError: If it is not what was committed.
        FileNotFoundError: If there is none.
    """
    place = checkpoints / str(step) / manifests.NAME
    return manifests.decode(place.read_bytes(), place)


def remove(checkpoints: Location, step: int) -> None:
    """Remove a checkpoint, its manifest first, so that no half of it ever counts."""
    place = checkpoints / str(step)
    try:
        root = read(checkpoints, step).root
    except (manifests.DamagedCheckpointError, FileNotFoundError):
        root = ""
    (place / manifests.NAME).remove()
    (place if checkpoints.local is not None or not root else place / root).remove_tree()


def set_aside(checkpoints: Location, step: int, reason: str) -> Location:
    """Make a damaged checkpoint not count any more, and keep all of it for a person to look at."""
    place = checkpoints / str(step)
    if checkpoints.local is not None:
        aside = _free(checkpoints, f"{step}{DAMAGED}", "")
        os.rename(checkpoints.local / str(step), checkpoints.local / aside.name)
        fsync(checkpoints.local)
        return aside
    content = (place / manifests.NAME).read_bytes()
    marker = _free(place, f"{_MARKER}manifest", ".json")
    report = {"reason": reason, "manifest": content.decode(errors="replace")}
    marker.write_bytes(json.dumps(report, indent=1).encode())
    (place / manifests.NAME).remove()
    return marker


def damaged(checkpoints: Location) -> list[Location]:
    """Return what was set aside."""
    names = checkpoints.names()
    if checkpoints.local is not None:
        return [checkpoints / name for name in names if DAMAGED in name]
    return [
        checkpoints / name / child
        for name in names
        if name.isdecimal()
        for child in (checkpoints / name).names()
        if child.startswith(_MARKER)
    ]


def leftovers(checkpoints: Location, attempt: int) -> list[Location]:
    """Return the folders of data that attempts before this number have left uncommitted."""
    found = []
    for name in checkpoints.names():
        place = checkpoints / name
        old_draft = (match := _DRAFT.match(name)) is not None and int(match[2]) < attempt
        if old_draft or _ORBAX_DRAFT in name:
            found.append(place)
        elif name.isdecimal():
            found += _leftovers_of_step(checkpoints, int(name), attempt)
    return found


def _leftovers_of_step(checkpoints: Location, step: int, attempt: int) -> list[Location]:
    place = checkpoints / str(step)
    children = place.names()
    if any(child.startswith(_MARKER) for child in children):
        return []
    committed = manifests.NAME in children
    if checkpoints.local is not None:
        # A folder appears with its manifest: it was being removed, or Orbax was writing it.
        return [] if committed else [place]
    try:
        root = read(checkpoints, step).root if committed else None
    except manifests.DamagedCheckpointError:
        return []
    return [
        place / child
        for child in children
        if (match := _DATA.fullmatch(child)) is not None
        and int(match[1]) < attempt
        and child != root
    ]


def _publish_folder(checkpoints: Path, place: Location, manifest: Manifest) -> None:
    folder = checkpoints / f".{manifest.step}.attempt-{manifest.attempt}"
    (folder / manifests.NAME).write_bytes(manifest.encode())
    fsync(folder / manifests.NAME)
    fsync(folder)
    target = checkpoints / str(manifest.step)
    if target.exists():
        _check_older(place, manifest)
        replaced = checkpoints / f"{folder.name}.replaced"
        os.rename(target, replaced)
        os.rename(folder, target)
        shutil.rmtree(replaced)
    else:
        os.rename(folder, target)
    fsync(checkpoints)


def _check_older(place: Location, manifest: Manifest) -> None:
    """Make sure that what is there may be replaced: it is late, or it cannot be read."""
    try:
        there = manifests.decode((place / manifests.NAME).read_bytes(), place)
    except (manifests.DamagedCheckpointError, FileNotFoundError):
        return
    if there.attempt > manifest.attempt:
        raise SupersededError(
            f"Attempt {there.attempt} of this run has committed step {there.step} to {place}, so "
            f"attempt {manifest.attempt}, which is this process, has been superseded and stops. "
            "Nothing was damaged."
        )


def _free(folder: Location, stem: str, suffix: str) -> Location:
    """Return a place in `folder` that is not taken yet."""
    taken = set(folder.names())
    number = 1
    name = f"{stem}{suffix}"
    while name in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    return folder / name
