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
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from distrib.environment import grace_seconds
from distrib.errors import ConfigurationError, UsageError

from ..hosts.coordinator import Coordinator
from ..hosts.host_agent import HostAgent
from ..hosts.host_pool import HostPool, JobSize
from ..hosts.network import Ssh
from ..hosts.placement import Host, parse_hostfile, parse_hosts
from ..hosts.protocol import join_token, parse_address
from ..hosts.ssh_hosts import SshHosts
from ..hosts.task import Task
from ..process.launcher_context import LauncherContext
from ..process.liveness_file import LivenessFile
from ..process.signals import Signals
from ..process.terminal import print_message
from . import pid1
from .hang_detector import HangTimeouts
from .job import Job, JobOptions
from .options import add_options

GRACE_SECONDS = 60.0
# The variables of the launcher's environment that ssh hosts get.
NAMES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
PREFIXES = (
    *("DISTRIB_", "HOROVOD_", "TF_", "KERAS_", "XLA_"),
    *("CUDA_", "NCCL_", "OMP_", "PYTHON"),
    *("AWS_", "GOOGLE_", "FSSPEC_"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib run`."""
    add_options(parser)
    parser.set_defaults(run=_run, hint="Options of the script go after its name.")


def _run(options: argparse.Namespace) -> int:
    return pid1.as_child(lambda: _supervise(options)) if os.getpid() == 1 else _supervise(options)


def _supervise(options: argparse.Namespace) -> int:
    _take_ranks_per_host(options)
    _check_places(options)
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    command = _module_command(words) if options.module else _command(words)
    task = Task(command, _exported(options.env))
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
            spares=options.spares and options.attempts > 0 and task.is_script,
        )
        return Job(pool, context, job_options).run()


def _check_places(options: argparse.Namespace) -> None:
    """Check the folders and the file of the launcher's own."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working directory does not exist any more: cd to another.") from None
    try:
        if options.output_dir is not None:
            options.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(_cannot("--output-dir", options.output_dir, error)) from error
    try:
        LivenessFile(options.heartbeat_file).touch()
    except OSError as error:
        raise ConfigurationError(
            _cannot("--heartbeat-file", options.heartbeat_file, error)
        ) from error


def _cannot(option: str, path: Path, error: OSError) -> str:
    return f"{option} {path} cannot be written: {error.strerror}. Give another path."


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
        raise UsageError("how many ranks? Give -np N before the script, or -H with the hosts.")
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
        raise UsageError(
            f"-np {min_ranks}: the hosts have {available} slots. Write HOST:SLOTS, like h0:4."
        )
    return JobSize(min_ranks, max_ranks, options.join_timeout)


def _take_ranks_per_host(options: argparse.Namespace) -> None:
    """Take torchrun's `--nproc-per-node N` for `-np N`, which it is on one host."""
    ranks = getattr(options, "nproc_per_node", None)
    if ranks is None:
        return
    given = f"--nproc-per-node {ranks}"
    if options.join is not None:
        raise UsageError(f"{given}: with --join write --slots {ranks}, and -np for the whole job.")
    if options.hosts or options.hostfile:
        raise UsageError(f"{given}: write each host's number of ranks behind its name: h0:{ranks}.")
    if options.num_proc not in (None, ranks):
        raise UsageError(f"{given}, -np {options.num_proc}: how many ranks? Give one of them.")
    options.num_proc = ranks


def _command(words: Sequence[str]) -> list[str]:
    if not words:
        raise UsageError("which script? For example: distrib run -np 4 train.py")
    if words[0].endswith(".py"):
        if not Path(words[0]).is_file():
            raise UsageError(f"{words[0]}: no such script in {Path.cwd()}.")
        return [sys.executable, *words]
    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]}: no such command.")
    return list(words)


def _module_command(words: Sequence[str]) -> list[str]:
    if not words:
        raise UsageError("-m: which module? For example: distrib run -np 4 -m package.train")
    top = words[0].partition(".")[0]
    # `python -m` finds modules of the working directory, too. To look deeper would import packages.
    if not top or not (PathFinder.find_spec(top, [os.getcwd()]) or find_spec(top)):
        raise UsageError(
            f"-m {words[0]}: there is no module {top!r}, neither in {Path.cwd()} nor installed."
        )
    return [sys.executable, "-m", *words]


def _exported(variables: Sequence[str]) -> dict[str, str]:
    """Return the environment for other hosts, after setting what `NAME=VALUE` sets for all."""
    assigned = dict(variable.split("=", 1) for variable in variables if "=" in variable)
    os.environ.update(assigned)
    exported = {*NAMES, *variables, *assigned}
    return {n: v for n, v in os.environ.items() if n in exported or n.startswith(PREFIXES)}
