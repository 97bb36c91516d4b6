"""`distrib checkpoints`: its subcommands, each of which has a module of its own."""

from __future__ import annotations

import argparse

from . import copy, diff, export, ls, rm, show


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `distrib checkpoints`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    ls.add_commands(commands)
    show.add_commands(commands)
    diff.add_commands(commands)
    export.add_commands(commands)
    copy.add_commands(commands)
    rm.add_commands(commands)
