"""`distrib checkpoints`: its subcommands, each of which has a module of its own."""

from __future__ import annotations

import argparse

from . import (
    checkpoint_copy,
    checkpoint_diff,
    checkpoint_export,
    checkpoint_list,
    checkpoint_removal,
    checkpoint_show,
)


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `distrib checkpoints`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    checkpoint_list.add_commands(commands)
    checkpoint_show.add_commands(commands)
    checkpoint_diff.add_commands(commands)
    checkpoint_export.add_commands(commands)
    checkpoint_copy.add_commands(commands)
    checkpoint_removal.add_commands(commands)
