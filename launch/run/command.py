"""`distrib run`: starts a script as one job of many processes, and restarts it until it finishes.

The script needs no changes: `distrib.init()` reads from the environment which rank it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from distrib.environment import grace_seconds
from distrib.errors import UsageError

from ..arguments import positive, seconds, whole
from ..hosts.coordinator import Coordinator
from ..hosts.host_agent import HostAgent
from ..hosts.host_pool import HostPool, JobSize
from ..hosts.network import Ssh
from ..hosts.placement import Host, parse_hostfile, parse_hosts
from ..hosts.protocol import PORT, join_token, parse_address
from ..hosts.ssh_hosts import SshHosts
from ..hosts.task import Task
from ..process.launcher_context import LauncherContext
from ..process.liveness_file import LivenessFile
from ..process.signals import Signals
from ..process.terminal import print_message
from . import pid1
from .hang_detector import STEP_SECONDS, HangTimeouts
from .job import Job, JobOptions
from .restarts import ATTEMPTS

BACKENDS = ("horovod", "multiworker", "local")
GRACE_SECONDS = 60.0
JOIN_SECONDS = 300.0
# The variables of the launcher's environment that ssh hosts get.
NAMES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
PREFIXES = (
    *("DISTRIB_", "HOROVOD_", "TF_", "KERAS_", "XLA_"),
    *("CUDA_", "NCCL_", "OMP_", "PYTHON"),
    *("AWS_", "GOOGLE_", "FSSPEC_"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib run`."""
    _add_rank_options(parser)
    _add_host_options(parser)
    _add_restart_options(parser)
    output = parser.add_argument_group("output").add_argument
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
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="script.py ...",
        help="a Python script, or any other command, and its arguments",
    )
    parser.set_defaults(run=_run)


def _add_rank_options(parser: argparse.ArgumentParser) -> None:
    ranks = parser.add_argument_group("ranks").add_argument
    ranks("-np", "--num-proc", type=positive, metavar="N", help="start N ranks (all slots)")
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
    hosts = parser.add_argument_group("hosts").add_argument
    hosts("-H", "--hosts", metavar="HOST:SLOTS,...", help="run ranks there, by ssh (this host)")
    hosts("--hostfile", type=Path, metavar="FILE", help="read the hosts from lines `host slots=N`")
    hosts("--ssh-port", type=positive, metavar="PORT", help="reach other hosts at this ssh port")
    hosts("--ssh-identity", metavar="FILE", help="reach other hosts with this private key")
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
    )
    hosts(
        "--port",
        type=positive,
        help="multiworker: use the ports from this one on each host (any that are free)",
    )
    hosts(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="also pass this variable to other hosts; may be repeated",
    )


def _add_restart_options(parser: argparse.ArgumentParser) -> None:
    restarts = parser.add_argument_group("restarts").add_argument
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


def _run(options: argparse.Namespace) -> int:
    return pid1.as_child(lambda: _supervise(options)) if os.getpid() == 1 else _supervise(options)


def _supervise(options: argparse.Namespace) -> int:
    task = Task(_command(options.command), _exported(options.env))
    grace = grace_seconds()
    grace = GRACE_SECONDS if grace is None else grace
    context = LauncherContext(print_message, LivenessFile(options.heartbeat_file), Signals())
    pool = _pool(options, task, context, grace)
    with context.signals.handled():
        if isinstance(pool, HostAgent):
            return pool.serve()
        job_options = JobOptions(
            backend=options.backend,
            first_port=options.port,
            timeouts=HangTimeouts(options.start_timeout, options.step_timeout),
            attempts=options.attempts,
            grace=grace,
            output_dir=options.output_dir,
        )
        return Job(pool, context, job_options).run()


def _pool(
    options: argparse.Namespace, task: Task, context: LauncherContext, grace: float
) -> HostPool | HostAgent:
    if options.join is not None:
        return _join(options, task, context, grace)
    if options.linger:
        raise UsageError("--linger goes with --join.")
    hosts = _hosts(options)
    ssh = Ssh(options.ssh_port, options.ssh_identity)
    size = _size(options, sum(host.slots for host in hosts()))
    return SshHosts(hosts, size, ssh, options.network_interface, task, context)


def _join(
    options: argparse.Namespace, task: Task, context: LauncherContext, grace: float
) -> Coordinator | HostAgent:
    if options.hosts or options.hostfile:
        raise UsageError("--join: hosts register themselves; leave -H and --hostfile out.")
    if options.num_proc is None and options.max_np is None:
        raise UsageError("--join: how many ranks has the whole job? Give -np.")
    name, port = parse_address(options.join)
    token = join_token(name)
    own = Host(socket.gethostname(), options.slots or 1)
    if Host(name, own.slots).is_local:
        size = _size(options, options.max_np or options.num_proc)
        interface = options.network_interface
        return Coordinator(port, token, own, size, interface, task, context)
    timeout, linger = options.join_timeout, options.linger
    return HostAgent((name, port), token, own, task, timeout, grace, linger, context)


def _hosts(options: argparse.Namespace) -> Callable[[], Sequence[Host]]:
    if options.hosts is not None and options.hostfile is not None:
        raise UsageError("Give -H or --hostfile, not both.")
    if options.slots is not None:
        raise UsageError("--slots goes with --join; with -H write HOST:SLOTS.")
    if options.hostfile is not None:
        return lambda: parse_hostfile(options.hostfile)
    if options.hosts is not None:
        named = parse_hosts(options.hosts)
        return lambda: named
    size = options.num_proc or options.max_np
    if size is None:
        raise UsageError("how many ranks? Give -np, or -H with the hosts.")
    return lambda: [Host("localhost", size)]


def _size(options: argparse.Namespace, available: int) -> JobSize:
    """Return how many ranks there may be on `available` slots."""
    max_ranks = options.max_np or options.num_proc or available
    min_ranks = options.min_np or options.num_proc or max_ranks
    if min_ranks > max_ranks:
        raise UsageError(
            f"--min-np {min_ranks} is more than the {max_ranks} ranks that the job may have."
        )
    if options.backend == "local" and max_ranks != 1:
        raise UsageError(
            f"--backend local is one process on all devices of a host, not {max_ranks}."
        )
    if min_ranks > available:
        raise UsageError(f"-np {min_ranks}: the hosts have {available} slots.")
    return JobSize(min_ranks, max_ranks, options.join_timeout)


def _command(words: Sequence[str]) -> list[str]:
    words = list(words[1:] if words[:1] == ["--"] else words)
    if not words:
        raise UsageError("which script? For example: distrib run -np 4 train.py")
    if words[0].endswith(".py"):
        if not Path(words[0]).is_file():
            raise UsageError(f"{words[0]}: no such script in {Path.cwd()}.")
        return [sys.executable, *words]
    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]}: no such command.")
    return words


def _exported(names: Sequence[str]) -> dict[str, str]:
    exported = {*NAMES, *names}
    return {n: v for n, v in os.environ.items() if n in exported or n.startswith(PREFIXES)}
