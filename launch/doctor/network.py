"""The network of this host, and the hosts that `distrib run -H` would reach by ssh."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from ..hosts.network import ANSWER_SECONDS, Ssh, probe_hosts
from ..hosts.placement import Host
from ..hosts.protocol import PORT
from .finding import OK, PROBLEM, WARNING, Finding
from .packages import installed_version

MAX_SKEW = 5.0  # Seconds.
PACKAGES = ("distrib", "tensorflow", "keras", "orbax-checkpoint", "horovod")
# Prints the clock and the versions of a host.
_ASK = """
import json, sys, time
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps({"time": time.time(), "versions": found}))
"""


def check_network() -> Iterator[Finding]:
    """Check this host's name and the port of `distrib run --join`."""
    name = socket.gethostname()
    try:
        yield Finding(OK, "host name", f"{name} is {socket.gethostbyname(name)}")
    except OSError:
        text = f"{name} has no address, without which Horovod's Gloo crashes"
        yield Finding(PROBLEM, "host name", text, f"add `127.0.1.1 {name}` to /etc/hosts")
    yield check_port(PORT)


def check_port(port: int) -> Finding:
    """Check that `distrib run --join` can listen."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            text = f"port {port} cannot be used: {error.strerror}"
            return Finding(WARNING, "--join", text, "name another one: --join HOST:PORT")
    return Finding(OK, "--join", f"port {port} is free")


def check_hosts(hosts: Sequence[Host], ssh: Ssh, interface: str | None) -> Iterator[Finding]:
    """Check that hosts can be reached without a password, and are set up like this one.

    Args:
        hosts: As of `distrib run`.
        ssh: How to reach them.
        interface: `--network-interface`.
    """
    views, errors = probe_hosts(hosts, ssh, interface)
    for error in errors:
        text, _, remedy = str(error).partition("\n")
        yield Finding(PROBLEM, "hosts", text, remedy)
    for host, view in views.items():
        if host.is_local:
            continue
        yield Finding(OK, host.name, f"answers by ssh, at {view.address} ({view.interface})")
        yield from _compare(host, ssh)


def _compare(host: Host, ssh: Ssh) -> Iterator[Finding]:
    """Compare the clock and the versions of a host with those here."""
    command = ssh.command(host.name, [sys.executable, "-I", "-c", _ASK, *PACKAGES])
    before = time.time()
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    after = time.time()
    if done.returncode != 0:
        yield Finding(PROBLEM, host.name, f"its Python fails: {done.stderr.strip()}")
        return
    answer = json.loads(done.stdout.splitlines()[-1])
    skew = max(before - answer["time"], answer["time"] - after, 0.0)
    if skew > MAX_SKEW:
        text = f"its clock and this host's differ by {skew:.0f} s"
        yield Finding(WARNING, host.name, text, "run NTP on all hosts")
    for name, found in answer["versions"].items():
        here = installed_version(name)
        if found != here:
            text = f"{name} {found or 'is missing'} there, {here or 'none'} here"
            remedy = "install the same environment at the same place on every host"
            yield Finding(PROBLEM, host.name, text, remedy)
