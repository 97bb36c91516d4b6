"""The `distrib` command: parses, and leaves the work to a module for each subcommand.

It answers fast because nothing here imports TensorFlow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import distrib
from distrib.errors import EXIT_FINISHED, EXIT_USAGE, DistribError

from .checkpoints import command as checkpoints
from .horovod import build as horovod_build
from .k8s import command as k8s
from .plan import command as plan
from .run import command as run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: Without the program's name; `None` takes the process's.
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as ended:  # argparse uses 2, which launchers do not know.
        return EXIT_USAGE if ended.code else EXIT_FINISHED
    try:
        return int(options.run(options))
    except DistribError as error:
        print(f"distrib: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # The reader, `head` for one, has seen enough.
        sys.stderr.close()
        return EXIT_FINISHED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distrib", description="Train Keras models so that nothing is ever lost."
    )
    parser.add_argument("--version", action="version", version=f"distrib {distrib.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    checkpoints.add_commands(commands.add_parser("checkpoints", help="look at a run's checkpoints"))
    run.add_arguments(
        commands.add_parser("run", help="train with many processes", allow_abbrev=False)
    )
    plan.add_arguments(commands.add_parser("plan", help="how often to save, what failures cost"))
    horovod_build.add_commands(commands.add_parser("horovod", help="make Horovod work here"))
    k8s.add_commands(commands.add_parser("k8s", help="run jobs on Kubernetes"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
