"""`distrib k8s`: manifests from options, a look at your own ones, and a pod's farewell."""

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
            description="Write the manifests of a job, for `kubectl apply -f -`. What cannot work "
            "is refused.",
            allow_abbrev=False,
        )
    )
    lint.add_arguments(
        commands.add_parser("lint", help="find in manifests what Kubernetes does not complain of")
    )
    pre_stop.add_arguments(
        commands.add_parser("leave", help="for preStop: have this pod's ranks save, and wait")
    )
