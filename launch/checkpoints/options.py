"""Options that the commands on checkpoints share, and the directories that they name.

Opening a directory writes nothing and claims no attempt, so a run may go on in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fsspec.core import split_protocol

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.errors import ConfigurationError
from distrib.storage.locate import locate
from distrib.storage.location import Location

from .errors import translate_storage_errors

NEWEST = "newest"
# For a store that does not answer: a person is waiting, and nothing has begun.
_TIMEOUT_SECONDS = 10.0


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command on a run's directory to those of `distrib checkpoints`.

    Args:
        commands: What `add_subparsers` returned.
        name: Of the command.
        run: Runs the command and returns its exit code.
        text: What the command does, for the help.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    text = "path or URL that the script gives to BackupAndRestore"
    command.add_argument("directory", metavar="DIRECTORY", help=text)
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_storage_options(command, "--storage-options", "DIRECTORY", "storage_options")
    command.set_defaults(run=run)
    return command


def add_second_storage_options(command: argparse.ArgumentParser, name: str, argument: str) -> None:
    """Add the storage options of the second location (see `second_location`).

    Args:
        command: Parser of the command.
        name: Of the option.
        argument: Which names the second location.
    """
    _add_storage_options(command, name, f"{argument} (--storage-options)", "second_options")


def _add_storage_options(
    command: argparse.ArgumentParser, name: str, argument: str, dest: str
) -> None:
    command.add_argument(
        name,
        type=_json_object,
        dest=dest,
        metavar="JSON",
        help=f"pass to fsspec for {argument}, such as '{{\"endpoint_url\": ...}}'",
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
        ConfigurationError: If the directory does not exist or cannot be reached.
    """
    return open_directory(locate(options.directory, "directory", options.storage_options))


def open_directory(location: Location) -> CheckpointDirectory:
    """Return the checkpoints of the run in a directory.

    Raises:
        ConfigurationError: If the directory does not exist or cannot be reached.
    """
    directory = CheckpointDirectory(location)
    with translate_storage_errors(location):
        if not replace(directory.location, timeout=_TIMEOUT_SECONDS).is_folder():
            raise ConfigurationError(
                f"{directory.location} does not exist: no run has saved there. Give the directory "
                "that the script gives to BackupAndRestore."
            )
    return directory


def second_location(options: argparse.Namespace, url: str, argument: str) -> Location:
    """Return the second location that a command was given.

    Without storage options of its own it shares those of `DIRECTORY`, if both are in the same kind
    of store.

    Args:
        options: As parsed.
        url: Path or URL of the second location.
        argument: Its name, for messages.
    """
    given = options.second_options
    if given is None and split_protocol(url)[0] == split_protocol(options.directory)[0]:
        given = options.storage_options
    return locate(url, argument, given)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        # The message does not repeat the text, which may hold a secret.
        raise argparse.ArgumentTypeError(f"this is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("this is not a JSON object, such as '{\"anon\": true}'")
    return value
