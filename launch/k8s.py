"""`distrib k8s`: manifests from options, a look at your own ones, and a pod's farewell."""

from __future__ import annotations

import argparse

from . import k8s_check, k8s_leave, k8s_render


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `distrib k8s`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    k8s_render.add_arguments(
        commands.add_parser(
            "render",
            help="write the manifests of a job",
            description="Write the manifests of a job, for `kubectl apply -f -`. What cannot work "
            "is refused.",
            allow_abbrev=False,
        )
    )
    k8s_check.add_arguments(
        commands.add_parser("lint", help="find in manifests what Kubernetes does not complain of")
    )
    k8s_leave.add_arguments(
        commands.add_parser("leave", help="for preStop: have this pod's ranks save, and wait")
    )
