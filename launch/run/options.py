"""The options of `distrib run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import port, positive, seconds, variable, whole
from ..hosts.protocol import PORT
from .habits import OptionGroup, add_habits
from .hang_detector import STEP_SECONDS
from .restarts import ATTEMPTS

BACKENDS = ("horovod", "multiworker", "local")
JOIN_SECONDS = 300.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib run`, and the script."""
    parser.usage = "distrib run [-np N] [-H HOST:SLOTS,...] [OPTIONS] script.py ..."
    _add_rank_options(parser)
    _add_host_options(parser)
    _add_restart_options(parser)
    output = OptionGroup(parser.add_argument_group("output"))
    output(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="also append each rank's output to DIR/rank-<n>.log",
    )
    output(
        "--heartbeat-file",
        type=Path,
        metavar="FILE",
        help="touch FILE every second, for a liveness probe",
    )
    add_habits(parser)
    parser.add_argument(
        "-m",
        "--module",
        action="store_true",
        help="the script is the name of a module, as for `python -m`",
    )
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="script.py ...",
        help="a Python script, or any other command, and its arguments",
    )


def _add_rank_options(parser: argparse.ArgumentParser) -> None:
    ranks = OptionGroup(parser.add_argument_group("ranks"))
    ranks(
        "-np",
        "--num-proc",
        type=positive,
        metavar="N",
        help="start N ranks (all slots)",
        synonyms="-n --np --num-processes",
    )
    ranks(
        "--min-np", type=positive, metavar="N", help="continue with N ranks if hosts are lost (-np)"
    )
    ranks("--max-np", type=positive, metavar="N", help="use at most N ranks (-np)")
    ranks(
        "--backend",
        choices=BACKENDS,
        default="horovod",
        help="exchange gradients in this way (%(default)s)",
    )


def _add_host_options(parser: argparse.ArgumentParser) -> None:
    hosts = OptionGroup(parser.add_argument_group("hosts"))
    hosts(
        "-H",
        "--hosts",
        metavar="HOST:SLOTS,...",
        help="run ranks there, by ssh (this host)",
        synonyms="-host -hosts --host",
    )
    hosts(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="read the hosts from lines `host slots=N`",
        synonyms="-hostfile -machinefile --machinefile -f",
    )
    hosts(
        "--ssh-port",
        type=port,
        metavar="PORT",
        help="reach other hosts at this ssh port",
        synonyms="-p",
    )
    hosts(
        "--ssh-identity",
        metavar="FILE",
        help="reach other hosts with this private key",
        synonyms="-i --ssh-identity-file",
    )
    hosts(
        "--join",
        metavar="HOST[:PORT]",
        help=f"without ssh: run the same command on all hosts, which meet at this one ({PORT})",
    )
    hosts("--slots", type=positive, metavar="N", help="--join: run N ranks on this host (1)")
    hosts(
        "--join-timeout",
        type=seconds,
        default=JOIN_SECONDS,
        metavar="SECONDS",
        help="wait this long for missing hosts [s] (%(default)g)",
    )
    hosts(
        "--linger",
        action="store_true",
        help="--join: keep all hosts but the coordinator after the job finished, until stopped",
    )
    hosts(
        "--network-interface",
        metavar="NAME",
        help="connect the hosts by this network interface (what ssh uses)",
        synonyms="--network-interfaces --nics",
    )
    hosts(
        "--port",
        type=port,
        help="multiworker: use the ports from this one on each host (any that are free)",
    )
    hosts(
        "--env",
        type=variable,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="also pass this variable to all ranks, or set it; may be repeated",
        synonyms="-x",
    )


def _add_restart_options(parser: argparse.ArgumentParser) -> None:
    restarts = OptionGroup(parser.add_argument_group("restarts"))
    restarts(
        "--attempts",
        type=whole,
        default=ATTEMPTS,
        metavar="N",
        help="stop after N attempts in a row without progress; 0: never restart (%(default)d)",
    )
    restarts(
        "--start-timeout",
        type=seconds,
        metavar="SECONDS",
        help="restart if `fit`, or then its first batch, takes longer to begin [s] "
        "(1800 for the first batch)",
    )
    restarts(
        "--step-timeout",
        type=seconds,
        default=STEP_SECONDS,
        metavar="SECONDS",
        help="restart if no rank makes progress for this long; 0: never [s] (%(default)g)",
    )
    restarts(
        "--spares",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep a process beside each rank that has imported TensorFlow, for the next restart "
        "(yes, while a quarter of the memory is free)",
    )
