"""The `distrib` command: parses arguments and calls the module of the subcommand.

It starts fast because no module that it imports at once imports TensorFlow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import distrib
from distrib.errors import EXIT_FINISHED, EXIT_USAGE, DistribError, UsageError

from .checkpoints import command as checkpoints
from .doctor import command as doctor
from .horovod import build as horovod_build
from .k8s import command as k8s
from .plan import command as plan
from .process.standard_streams import escape_unprintable, open_closed_streams
from .run import command as run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: Without the program's name. Defaults to `None`, which takes the process's.
    """
    open_closed_streams()
    escape_unprintable()
    try:
        try:
            options = _parse(arguments)
        except SystemExit as ended:  # argparse exits with 2, which launchers do not know.
            return EXIT_USAGE if ended.code else EXIT_FINISHED
        return int(options.run(options))
    except DistribError as error:
        print(f"distrib: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # The reader, such as `head`, has ended.
        sys.stderr.close()
        return EXIT_FINISHED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}. {options.hint}".strip())
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distrib",
        description="Train Keras models on many processes, with fault-tolerant checkpoints.",
    )
    parser.add_argument("--version", action="version", version=f"distrib {distrib.__version__}")
    parser.set_defaults(hint="")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    checkpoints.add_commands(
        commands.add_parser("checkpoints", help="list, compare, copy and remove checkpoints")
    )
    run.add_arguments(
        commands.add_parser(
            "run", help="train with many processes, and restart them", allow_abbrev=False
        )
    )
    doctor.add_arguments(
        commands.add_parser("doctor", help="check this environment, other hosts and stores")
    )
    plan.add_arguments(commands.add_parser("plan", help="compute how often to save"))
    horovod_build.add_commands(commands.add_parser("horovod", help="build and check Horovod"))
    k8s.add_commands(commands.add_parser("k8s", help="write and check Kubernetes manifests"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
