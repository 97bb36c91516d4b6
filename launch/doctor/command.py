"""`distrib doctor`: checks this environment, and what a job on it would use."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import distrib
from distrib.errors import UsageError

from ..arguments import port
from ..hosts.network import Ssh
from ..hosts.placement import Host, parse_hostfile, parse_hosts
from .finding import LEVELS, Finding
from .frameworks import check_frameworks
from .machine import check_machine
from .network import check_hosts, check_network
from .packages import check_packages
from .stores import check_store

_WIDTH = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib doctor`."""
    parser.description = (
        "Check the packages, the GPUs, this machine, other hosts and stores. Each line is ok, a "
        "warning, or a problem with its remedy; the exit code is 0, 1 or 2 for the worst of them."
    )
    add = parser.add_argument
    add("stores", nargs="*", metavar="URL", help="folders or fsspec URLs that are to hold a run")
    add("-H", "--hosts", metavar="HOST:SLOTS,...", help="check these hosts by ssh, as `run` does")
    add("--hostfile", type=Path, metavar="FILE", help="read the hosts from lines `host slots=N`")
    add("--ssh-port", type=port, metavar="PORT", help="reach other hosts at this ssh port")
    add("--ssh-identity", metavar="FILE", help="reach other hosts with this private key")
    add("--network-interface", metavar="NAME", help="the network that the hosts share")
    add("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_run, hint="See `distrib doctor --help`.")


def _run(options: argparse.Namespace) -> int:
    findings = []
    for finding in _check(options):
        findings.append(finding)
        if not options.json:
            _print(finding)
    if options.json:
        report = {"distrib": distrib.__version__, "findings": [asdict(each) for each in findings]}
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        _print_summary(findings)
    return max(LEVELS.index(finding.level) for finding in findings)


def _check(options: argparse.Namespace) -> Iterator[Finding]:
    hosts = _hosts(options)
    yield from check_packages()
    yield from check_frameworks()
    yield from check_machine()
    yield from check_network()
    if hosts:
        ssh = Ssh(options.ssh_port, options.ssh_identity)
        yield from check_hosts(hosts, ssh, options.network_interface)
    for url in options.stores:
        yield from check_store(url)


def _hosts(options: argparse.Namespace) -> Sequence[Host]:
    if options.hosts is not None and options.hostfile is not None:
        raise UsageError("Give -H or --hostfile, not both.")
    if options.hostfile is not None:
        return parse_hostfile(options.hostfile)
    return parse_hosts(options.hosts) if options.hosts is not None else ()


def _print(finding: Finding) -> None:
    print(f"{finding.level:<8} {finding.subject:<{_WIDTH}} {finding.text}")
    if finding.remedy:
        print(f"{'':<8} {'':<{_WIDTH}} -> {finding.remedy}")
    sys.stdout.flush()


def _print_summary(findings: Sequence[Finding]) -> None:
    counts = {level: sum(each.level == level for each in findings) for level in LEVELS[1:]}
    words = [f"{n} {level}{'s' * (n > 1)}" for level, n in counts.items() if n]
    print(f"\n{', '.join(words)}." if words else "\nNothing is wrong.")
