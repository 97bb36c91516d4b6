"""`distrib checkpoints`: adds its subcommands, each of which has a module of its own."""

from __future__ import annotations

import argparse

from . import copy, diff, export, ls, prune, rm, show, verify


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `distrib checkpoints`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (ls, show, verify, diff, export, copy, rm, prune):
        module.add_commands(commands)
