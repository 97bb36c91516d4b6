"""How the launcher reaches the hosts, and how the hosts reach each other.

Other hosts are reached by ssh with the user's own settings (`~/.ssh/config`), without a password.
Every host is probed before any rank starts, so that a wrong name, a missing key or a missing Python
is one message rather than a job that fails halfway.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib.errors import EXIT_LOST_PEER, ConfigurationError, DistribError

from . import probe
from .placement import Host

LOOPBACK = "127.0.0.1"
SSH_FAILED = 255
ANSWER_SECONDS = 60.0


class UnreachableHostError(DistribError):
    """A host does not answer. It may come back, so running the command again may help."""

    exit_code = EXIT_LOST_PEER


@dataclass(frozen=True)
class Ssh:
    """How to run commands on other hosts.

    Never prompts for a password; a connection that carries nothing for 15 seconds is lost. IPv4
    only, as Horovod's rendezvous server supports nothing else.

    Attributes:
        port: Of the ssh servers; `None` leaves it to ssh.
        identity: File with the private key; `None` leaves it to ssh.
    """

    port: int | None = None
    identity: str | None = None

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """Return the command that runs `words` on a host."""
        options = ["BatchMode=yes", "ConnectTimeout=10", "AddressFamily=inet"]
        options += ["ServerAliveInterval=5", "ServerAliveCountMax=3"]
        command = ["ssh", "-T", *(f"-o{option}" for option in options)]
        if self.port is not None:
            command += ["-p", str(self.port)]
        if self.identity is not None:
            command += ["-i", self.identity]
        return [*command, "--", host, shlex.join(words)]


@dataclass(frozen=True)
class View:
    """The network as one host sees it.

    Attributes:
        address: The host's own IPv4 address, for the other hosts.
        interface: The network interface with that address.
        launcher: The launcher's IPv4 address, as this host sees it.
        ports: As many TCP ports of the host as it has ranks, free a moment ago.
    """

    address: str
    interface: str
    launcher: str
    ports: tuple[int, ...]


def script_command(module: str) -> list[str]:
    """Return the command that runs a file of this folder by its path, here and on other hosts."""
    return [sys.executable, "-I", str(Path(__file__).with_name(module))]


def probe_hosts(
    hosts: Sequence[Host], ssh: Ssh, interface: str | None
) -> tuple[dict[Host, View], list[DistribError]]:
    """Probe every host for its view of the network.

    Args:
        hosts: Which ones; each reports as many free ports as it has slots.
        ssh: How to reach other hosts.
        interface: The network interface to use on every host; `None` takes the one that ssh uses.

    Returns:
        The views of the hosts that answered, in the order of `hosts`, and an error for each of the
        others: an `UnreachableHostError` if a host does not answer, a `ConfigurationError` if it is
        not set up like this host, or has no such `interface`.
    """
    probes = {host: _start_probe(host, ssh) for host in hosts if not host.is_local}
    views: dict[Host, View] = {}
    errors: list[DistribError] = []
    # This host comes last: the others' views tell its address.
    for host in sorted(hosts, key=lambda host: host not in probes):
        try:
            if host in probes:
                views[host] = remote_view(host.name, _result(host, probes[host]), interface)
            else:
                addresses = [view.launcher for view in views.values()]
                views[host] = local_view(host.slots, addresses, interface)
        except (UnreachableHostError, ConfigurationError) as error:
            errors.append(error)
    return {host: views[host] for host in hosts if host in views}, errors


def _start_probe(host: Host, ssh: Ssh) -> subprocess.Popen[str]:
    if shutil.which("ssh") is None:
        raise ConfigurationError(
            f"{host.name} is another host, and there is no ssh command to reach it."
        )
    words = [*script_command("probe.py"), f"--ports={host.slots}", f"--directory={os.getcwd()}"]
    return subprocess.Popen(
        ssh.command(host.name, words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _result(host: Host, process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise UnreachableHostError(
            f"{host.name} accepts the connection but has not answered in {ANSWER_SECONDS:.0f} s; "
            f"find out why: ssh -o BatchMode=yes {host.name} true"
        ) from None
    if process.returncode == SSH_FAILED:
        raise UnreachableHostError(
            f"cannot reach {host.name}: {err.strip()}\nThis must work without a prompt: "
            f"ssh -o BatchMode=yes {host.name} true"
        )
    if process.returncode != 0:
        raise ConfigurationError(
            f"{host.name} lacks what this host has, {shlex.join(script_command('probe.py')[::2])}: "
            f"{err.strip()}\nInstall the same environment at the same place on every host."
        )
    answer = dict(json.loads(out.splitlines()[-1]))  # A shell's start-up files may print more.
    if not answer["directory"]:
        raise ConfigurationError(
            f"{host.name} has no folder {os.getcwd()}, the working directory of the ranks; call "
            "distrib run in a folder that exists on all hosts."
        )
    return answer


def remote_view(host: str, answer: Mapping[str, Any], interface: str | None) -> View:
    """Return another host's view.

    Args:
        host: Its name.
        answer: What `probe.py` reported there.
        interface: The network interface to use; `None` takes that of the connection.

    Raises:
        ConfigurationError: If the host has no such interface.
    """
    addresses = answer["interfaces"]
    if interface is None:
        own, launcher = answer["own"], answer["launcher"]
        interface = _interface_with(own, addresses, host)
    else:
        own = _address_on(interface, addresses, host)
        launcher = _address_on(interface, probe.interface_addresses(), "this host")
    return View(own, interface, launcher, tuple(answer["ports"]))


def local_view(ports: int, addresses: Sequence[str], interface: str | None) -> View:
    """Return the view of the launcher's host, whose address only the other hosts know.

    Args:
        ports: How many free ports to include.
        addresses: This host's address as each of the other hosts sees it.
        interface: See `remote_view`.
    """
    own_addresses = probe.interface_addresses()
    if interface is not None:
        own = _address_on(interface, own_addresses, "this host")
    else:
        own = addresses[0] if addresses else LOOPBACK
        interface = _interface_with(own, own_addresses, "this host")
    return View(own, interface, own, tuple(probe.free_ports(ports)))


def _interface_with(address: str, addresses: dict[str, str], host: str) -> str:
    for name, candidate in addresses.items():
        if candidate == address:
            return name
    raise ConfigurationError(
        f"{host} is reached at {address}, but {host} has {addresses}; pass the interface "
        "of the network that the hosts share: --network-interface."
    )


def _address_on(interface: str, addresses: dict[str, str], host: str) -> str:
    if interface not in addresses:
        raise ConfigurationError(
            f"--network-interface {interface}: {host} has no such interface with an IPv4 address; "
            f"it has {', '.join(addresses)}."
        )
    return addresses[interface]
