"""`distrib k8s`: its subcommands `render`, `lint` and `leave`."""

from __future__ import annotations

import argparse

from . import lint, pre_stop, render


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `distrib k8s`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    render.add_arguments(
        commands.add_parser(
            "render",
            help="write the manifests of a job",
            description="Write the manifests of a job, for `kubectl apply -f -`. Settings that "
            "cannot work are refused.",
            allow_abbrev=False,
        )
    )
    text = "find faults in manifests that Kubernetes accepts"
    lint.add_arguments(commands.add_parser("lint", help=text))
    text = "as a preStop hook: stop this pod's ranks, and wait until they have saved"
    pre_stop.add_arguments(commands.add_parser("leave", help=text))
