"""`distrib run`: starts a script as one job of many processes, and sees it to its end.

The script needs nothing for it: `distrib.init()` finds out from the environment which rank it is.
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
from ..hosts.allocation import Fleet, NamedHosts, Size, Task
from ..hosts.coordinator import Coordinator
from ..hosts.host_agent import Member
from ..hosts.network import Ssh
from ..hosts.placement import Host, parse_hostfile, parse_hosts
from ..hosts.protocol import PORT, parse_address
from ..process.launcher import Console
from ..process.liveness_file import Alive
from ..process.signals import Signals
from ..process.terminal import tell
from . import pid1
from .job import Job, Plan
from .liveness import STEP_SECONDS, Limits
from .restarts import ATTEMPTS

BACKENDS = ("horovod", "multiworker", "local")
GRACE_SECONDS = 60.0
JOIN_SECONDS = 300.0
# Of the launcher's environment, what goes along to other hosts.
NAMES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
PREFIXES = (
    *("DISTRIB_", "HOROVOD_", "TF_", "KERAS_", "XLA_"),
    *("CUDA_", "NCCL_", "OMP_", "PYTHON"),
    *("AWS_", "GOOGLE_", "FSSPEC_"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib run`."""
    ranks = parser.add_argument_group("ranks").add_argument
    ranks("-np", "--num-proc", type=positive, metavar="N", help="number of ranks (all slots)")
    ranks("--min-np", type=positive, metavar="N", help="go on with so few if hosts are lost (-np)")
    ranks("--max-np", type=positive, metavar="N", help="use no more than so many (-np)")
    ranks("--backend", choices=BACKENDS, default="horovod", help="(horovod)")

    hosts = parser.add_argument_group("hosts").add_argument
    hosts("-H", "--hosts", metavar="HOST:SLOTS,...", help="where they run, by ssh (this host)")
    hosts("--hostfile", type=Path, metavar="FILE", help="the same, a line `host slots=N` each")
    hosts("--ssh-port", type=positive, metavar="PORT", help="of the other hosts")
    hosts("--ssh-identity", metavar="FILE", help="private key for the other hosts")
    hosts(
        "--join",
        metavar="HOST[:PORT]",
        help=f"without ssh: the same command runs on all hosts and meets at this one ({PORT})",
    )
    hosts("--slots", type=positive, metavar="N", help="--join: ranks on this host (1)")
    hosts(
        "--join-timeout",
        type=seconds,
        default=JOIN_SECONDS,
        metavar="SECONDS",
        help="how long hosts that are missing are waited for (%(default)g)",
    )
    hosts(
        "--linger",
        action="store_true",
        help="--join: hosts but the first stay when all is done, until they are asked to stop",
    )
    hosts("--network-interface", metavar="NAME", help="what connects the hosts (what ssh uses)")
    hosts("--port", type=positive, help="multiworker: each host's first port (any that is free)")
    hosts(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="also pass this variable on to other hosts; may be repeated",
    )

    restarts = parser.add_argument_group("restarts").add_argument
    restarts(
        "--attempts",
        type=whole,
        default=ATTEMPTS,
        metavar="N",
        help="give up after so many in a row that gained no step; 0: never restart (%(default)d)",
    )
    restarts(
        "--start-timeout",
        type=seconds,
        metavar="SECONDS",
        help="restart if it takes so long to begin `fit`, or its first batch (1800 for the latter)",
    )
    restarts(
        "--step-timeout",
        type=seconds,
        default=STEP_SECONDS,
        metavar="SECONDS",
        help="restart if no rank has got on for so long; 0: never (%(default)g)",
    )

    output = parser.add_argument_group("output").add_argument
    output(
        "--output-dir", type=Path, metavar="DIR", help="keep each rank's output in DIR/rank-<n>.log"
    )
    output(
        "--heartbeat-file",
        type=Path,
        metavar="FILE",
        help="touch this file every second, for a liveness probe",
    )
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="script.py ...",
        help="a Python script, or any other command, and its arguments",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    return pid1.as_child(lambda: _supervise(options)) if os.getpid() == 1 else _supervise(options)


def _supervise(options: argparse.Namespace) -> int:
    task = Task(_command(options.command), _exported(options.env))
    grace = grace_seconds()
    grace = GRACE_SECONDS if grace is None else grace
    console = Console(tell, Alive(options.heartbeat_file), Signals())
    fleet = _fleet(options, task, console, grace)
    with console.signals.caught():
        if isinstance(fleet, Member):
            return fleet.serve()
        plan = Plan(
            backend=options.backend,
            first_port=options.port,
            limits=Limits(options.start_timeout, options.step_timeout),
            attempts=options.attempts,
            grace=grace,
            output_dir=options.output_dir,
        )
        return Job(fleet, console, plan).run()


def _fleet(
    options: argparse.Namespace, task: Task, console: Console, grace: float
) -> Fleet | Member:
    if options.join is None:
        if options.linger:
            raise UsageError("--linger goes with --join.")
        hosts = _hosts(options)
        ssh = Ssh(options.ssh_port, options.ssh_identity)
        size = _size(options, sum(host.slots for host in hosts()))
        return NamedHosts(hosts, size, ssh, options.network_interface, task, console)
    if options.hosts or options.hostfile:
        raise UsageError("--join: the hosts come by themselves; leave -H and --hostfile out.")
    if options.num_proc is None and options.max_np is None:
        raise UsageError("--join: how many ranks has the whole job? Give -np.")
    name, port = parse_address(options.join)
    own = Host(socket.gethostname(), options.slots or 1)
    if Host(name, own.slots).is_local:
        size = _size(options, options.max_np or options.num_proc)
        return Coordinator(port, own, size, options.network_interface, task, console)
    patience, linger = options.join_timeout, options.linger
    return Member((name, port), own, task, patience, grace, linger, console)


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


def _size(options: argparse.Namespace, available: int) -> Size:
    """Return how many ranks there may be; `available` are the slots, as far as they are known."""
    most = options.max_np or options.num_proc or available
    least = options.min_np or options.num_proc or most
    if least > most:
        raise UsageError(f"--min-np {least} is more than the {most} ranks that the job may have.")
    if options.backend == "local" and most != 1:
        raise UsageError(f"--backend local is one process on all devices of a host, not {most}.")
    if least > available:
        raise UsageError(f"-np {least}: the hosts have {available} slots.")
    return Size(least, most, options.join_timeout)


def _command(words: Sequence[str]) -> list[str]:
    words = list(words[1:] if words[:1] == ["--"] else words)
    if not words:
        raise UsageError("which script? For example: distrib run -np 4 train.py")
    if words[0].endswith(".py"):
        if not Path(words[0]).is_file():
            raise UsageError(f"{words[0]}: there is no such script in {Path.cwd()}.")
        return [sys.executable, *words]
    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]}: there is no such command.")
    return words


def _exported(names: Sequence[str]) -> dict[str, str]:
    wanted = {*NAMES, *names}
    return {n: v for n, v in os.environ.items() if n in wanted or n.startswith(PREFIXES)}
