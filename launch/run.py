"""`distrib run`: starts a script as one job of many processes, on this host and others.

The script needs nothing for it: `distrib.init()` finds out from the environment which rank it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distrib.errors import EXIT_FINISHED, ConfigurationError

from . import rendezvous
from .network import Ssh, View, beside, survey
from .outcome import advice
from .output import STDERR, STDOUT, Display
from .placement import Host, Slot, UsageError, assign, parse_hosts
from .supervisor import LEASE_SECONDS, Supervisor

GRACE_VARIABLE = "DISTRIB_GRACE_SECONDS"
GRACE_SECONDS = "60"
# Of the launcher's environment, what goes along to other hosts.
NAMES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
PREFIXES = (
    *("DISTRIB_", "HOROVOD_", "TF_", "KERAS_", "XLA_"),
    *("CUDA_", "NCCL_", "OMP_", "PYTHON"),
    *("AWS_", "GOOGLE_", "FSSPEC_"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib run`."""
    add = parser.add_argument
    add("-np", "--num-proc", type=_positive, metavar="N", help="number of ranks (all slots of -H)")
    add("-H", "--hosts", metavar="HOST:SLOTS,...", help="where they run (this host)")
    add("--backend", choices=("horovod", "multiworker"), default="horovod", help="(horovod)")
    add(
        "--output-dir", type=Path, metavar="DIR", help="keep each rank's output in DIR/rank-<n>.log"
    )
    add("--port", type=_positive, help="multiworker: each host's first port (any that is free)")
    add("--network-interface", metavar="NAME", help="what connects the hosts (what ssh uses)")
    add("--ssh-port", type=_positive, metavar="PORT", help="of the other hosts")
    add("--ssh-identity", metavar="FILE", help="private key for the other hosts")
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="also pass this variable on to other hosts; may be repeated",
    )
    add(
        "command",
        nargs=argparse.REMAINDER,
        metavar="script.py ...",
        help="a Python script, or any other command, and its arguments",
    )
    parser.set_defaults(run=_run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    command = _command(options.command)
    slots = _slots(options.num_proc, options.hosts)
    grace = _grace()
    ssh = Ssh(options.ssh_port, options.ssh_identity)
    views = survey(slots, ssh, options.network_interface)
    environments = _environments(options.backend, slots, views, options.port)
    display = Display(options.output_dir, len(slots), quiet=rendezvous.LOG_LEVEL not in os.environ)
    end = Supervisor(display, grace).run(_jobs(command, slots, environments, ssh, options.env))
    if end is not None:
        display.say(advice(end))
    display.close()
    return EXIT_FINISHED if end is None else end.exit_code


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


def _slots(size: int | None, hosts: str | None) -> list[Slot]:
    if hosts is not None:
        named = parse_hosts(hosts)
        return assign(named, size or sum(host.slots for host in named))
    if size is None:
        raise UsageError("how many ranks? Give -np, or -H with the hosts.")
    return assign([Host("localhost", size)], size)


def _grace() -> float:
    text = os.environ.get(GRACE_VARIABLE, GRACE_SECONDS)
    try:
        grace = float(text)
    except ValueError:
        grace = -1.0
    if grace < 0:
        raise ConfigurationError(f"{GRACE_VARIABLE}={text!r} is not a number of seconds.")
    return grace


def _environments(
    backend: str, slots: Sequence[Slot], views: dict[Host, View], first_port: int | None
) -> list[rendezvous.Environment]:
    common = [rendezvous.common_environment(slot) for slot in slots]
    if backend == "horovod":
        port = rendezvous.start_server(slots, views)
        own = [rendezvous.horovod_environment(slot, views[slot.host], port) for slot in slots]
    else:
        addresses = rendezvous.worker_addresses(slots, views, first_port)
        own = [rendezvous.multiworker_environment(slot, addresses) for slot in slots]
    return [{**its_common, **its_own} for its_common, its_own in zip(common, own, strict=True)]


def _jobs(
    command: Sequence[str],
    slots: Sequence[Slot],
    environments: Sequence[rendezvous.Environment],
    ssh: Ssh,
    names: Sequence[str],
) -> Iterator[tuple[Slot, Sequence[str], dict[str, Any]]]:
    """Yield what each rank's keeper is started by, and what it is told."""
    keeper = beside("keeper.py")
    for slot, environment in zip(slots, environments, strict=True):
        local = slot.host.is_local
        spec = {
            "command": command,
            "directory": os.getcwd(),
            "environment": environment if local else {**_exported(names), **environment},
            "terminals": _terminals() if slot.rank == 0 else {},
            # Here, the end of the launcher is the end of its pipe, so there is nothing to wait for.
            "lease": None if local else LEASE_SECONDS,
        }
        yield slot, keeper if local else ssh.command(slot.hostname, keeper), spec


def _exported(names: Sequence[str]) -> rendezvous.Environment:
    wanted = {*NAMES, *names}
    return {n: v for n, v in os.environ.items() if n in wanted or n.startswith(PREFIXES)}


def _terminals() -> dict[int, tuple[int, int]]:
    """Return rows and columns of those of the launcher's outputs that are a terminal."""
    sizes = {fd: os.get_terminal_size(fd) for fd in (STDOUT, STDERR) if os.isatty(fd)}
    return {fd: (size.lines, size.columns) for fd, size in sizes.items()}
