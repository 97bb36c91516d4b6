"""What all commands on checkpoints begin with: the place, and those of its checkpoints that count.

Nothing here writes, and nothing claims an attempt, so a run may go on in the directory meanwhile.
Whatever is not there, or cannot be reached or read, becomes one line that says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fsspec.core import split_protocol

from distrib.checkpoint import commit
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.manifest import NAME, DamagedCheckpointError
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.errors import ConfigurationError, NoLoadableCheckpointError
from distrib.storage.errors import classify
from distrib.storage.locate import locate
from distrib.storage.location import Location, describe_error

COMMITTED, LATE = "committed", "late"
DAMAGED, SET_ASIDE = "damaged manifest", "set aside"
NEWEST = "newest"
# Seconds until a store that does not answer is given up, before anything has begun.
_PATIENCE = 10.0


class RemovedError(ConfigurationError):
    """A checkpoint went away while it was read, as old ones do where a run goes on."""


@dataclass(frozen=True)
class Found:
    """A checkpoint, or what has become of one.

    Attributes:
        step: Its step.
        place: Where it is.
        state: `COMMITTED`, `LATE` (by an attempt that had been superseded), `DAMAGED` (its manifest
            cannot be read) or `SET_ASIDE`.
        stored: To read it; `None` if it is damaged or set aside.
        error: What is wrong with its manifest.
    """

    step: int
    place: Location
    state: str
    stored: StoredCheckpoint | None = None
    error: str = ""


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command on a run's directory to those of `distrib checkpoints`.

    Args:
        commands: What `add_subparsers` returned.
        name: Of the command.
        run: Does it and returns the exit code.
        text: Says what it does, for the help.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    text = "what the script gave to BackupAndRestore: path or URL"
    command.add_argument("directory", metavar="DIRECTORY", help=text)
    command.add_argument("--json", action="store_true", help="for programs")
    _add_storage_options(command, "--storage-options", "DIRECTORY", "storage_options")
    command.set_defaults(run=run)
    return command


def add_second_storage_options(command: argparse.ArgumentParser, name: str, place: str) -> None:
    """Add the option that `second_place` goes by."""
    _add_storage_options(command, name, f"{place}, if it needs other ones", "second_options")


def _add_storage_options(
    command: argparse.ArgumentParser, name: str, place: str, dest: str
) -> None:
    command.add_argument(
        name,
        type=_json_object,
        dest=dest,
        metavar="JSON",
        help=f"for fsspec's file system of {place}, such as '{{\"endpoint_url\": ...}}'",
    )


def step(text: str) -> int | None:
    """Parse a step; `newest` is `None`."""
    return None if text == NEWEST else step_number(text)


def step_number(text: str) -> int:
    """Parse the number of a step."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a step, such as 3500")
    return int(text)


def open_run(options: argparse.Namespace) -> CheckpointDirectory:
    """Return the checkpoints of the run in `options.directory`.

    Raises:
        ConfigurationError: If there is no such directory, or it cannot be reached.
    """
    return open_directory(locate(options.directory, "directory", options.storage_options))


def open_directory(location: Location) -> CheckpointDirectory:
    """Return the checkpoints of the run in a directory; raises like `open_run`."""
    directory = CheckpointDirectory(location)
    with plainly(location):
        if not replace(directory.location, timeout=_PATIENCE).is_folder():
            raise ConfigurationError(
                f"{directory.location} does not exist: no run has saved there. Give what the "
                "script gave to BackupAndRestore."
            )
    return directory


def second_place(options: argparse.Namespace, url: str, argument: str) -> Location:
    """Return another place that a command was given.

    It has storage options of its own; without them those of the first place hold for another place
    in the same kind of store.
    """
    given = options.second_options
    if given is None and split_protocol(url)[0] == split_protocol(options.directory)[0]:
        given = options.storage_options
    return locate(url, argument, given)


def committed(directory: CheckpointDirectory) -> list[Found]:
    """Return all checkpoints that have a manifest, by step."""
    found: list[Found] = []

    def unreadable(step: int, error: DamagedCheckpointError) -> None:
        place = directory.location / str(step)
        found.append(Found(step, place, DAMAGED, error=str(error)))

    with plainly(directory.location):
        for stored in directory.checkpoints(unreadable):
            state = LATE if stored.late else COMMITTED
            found.append(Found(stored.manifest.step, stored.location, state, stored))
    return sorted(found, key=lambda one: one.step)


def existing(directory: CheckpointDirectory) -> list[Found]:
    """Return all checkpoints that have a manifest, by step.

    Raises:
        ConfigurationError: If there is none.
    """
    found = committed(directory)
    if not found:
        raise ConfigurationError(f"There is no checkpoint in {directory.location}.")
    return found


def set_aside(directory: CheckpointDirectory) -> list[Found]:
    """Return the damaged checkpoints that runs have set aside."""
    with plainly(directory.location):
        places = commit.quarantined(directory.location)
    return [Found(_step_of(place), place, SET_ASIDE) for place in places]


def newest(found: list[Found]) -> Found | None:
    """Return the one that a run would go on from; a late one only if there is nothing else."""
    readable = [one for one in found if one.stored is not None]
    return max(readable, key=lambda one: (one.state == COMMITTED, one.step), default=None)


def choose(directory: CheckpointDirectory, step: int | None) -> StoredCheckpoint:
    """Return the checkpoint of a step, or the newest one for `None`.

    Raises:
        ConfigurationError: If there is no such checkpoint; names those that there are.
        NoLoadableCheckpointError: If its manifest is damaged.
    """
    found = existing(directory)
    chosen = newest(found) if step is None else pick(directory, found, step)
    chosen = chosen or found[-1]  # All are damaged.
    if chosen.stored is None:
        raise NoLoadableCheckpointError(f"damaged: {chosen.error}")
    return chosen.stored


def pick(directory: CheckpointDirectory, found: list[Found], step: int) -> Found:
    """Return the one of a step.

    Raises:
        ConfigurationError: If there is none; names those that there are.
    """
    for one in found:
        if one.step == step:
            return one
    steps = ", ".join(str(one.step) for one in found) or "no steps at all"
    raise ConfigurationError(f"{directory.location} has no step {step}; it has {steps}.")


@contextmanager
def plainly(location: Location) -> Iterator[None]:
    """Turn errors of the operating system or the store in the block into one plain line.

    Args:
        location: What the block works on.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{location}: {describe_error(error, location)}; {classify(error).remedy}."
        ) from error


@contextmanager
def reading(stored: StoredCheckpoint) -> Iterator[None]:
    """Turn what goes wrong in the block, which reads a checkpoint, into one plain line.

    Raises:
        NoLoadableCheckpointError: If it is damaged; names the file.
        RemovedError: If it was removed meanwhile.
    """
    try:
        with plainly(stored.location):
            yield
    except DamagedCheckpointError as error:
        with plainly(stored.location):
            there = (stored.location / NAME).exists()
        if not there:
            raise RemovedError(
                f"{stored.location} was removed while it was read, as a run does that keeps only "
                "its newest checkpoints. Take a newer one."
            ) from error
        raise NoLoadableCheckpointError(f"damaged: {error}") from error


def _step_of(aside: Location) -> int:
    """`3500.damaged` or, on an object store, `3500/damaged-manifest.json`."""
    name = aside.name if aside.local is not None else aside.parent.name
    return int(name.partition(".")[0])


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        # It is not repeated here, because it may hold a secret.
        raise argparse.ArgumentTypeError(f"this is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("this is not a JSON object, such as '{\"anon\": true}'")
    return value
