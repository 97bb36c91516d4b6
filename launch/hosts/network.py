"""How the launcher reaches the hosts, and how the hosts reach each other.

Other hosts are reached by ssh with the user's own settings (`~/.ssh/config`), without a password.
Every host is asked before anything is started: a wrong name, a missing key and a missing Python are
then one message, and not the ruins of a job.
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
    """A host does not answer. It may come back, so the command may be run again."""

    exit_code = EXIT_LOST_PEER


@dataclass(frozen=True)
class Ssh:
    """How to run commands on other hosts.

    Without a password prompt; and a connection that carries nothing for 15 seconds is lost. IPv4,
    because Horovod's rendezvous server knows nothing else.
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
        launcher: The launcher's IPv4 address, from there.
        ports: As many TCP ports of the host as it has ranks, free a moment ago.
    """

    address: str
    interface: str
    launcher: str
    ports: tuple[int, ...]


def beside(module: str) -> list[str]:
    """Return the command that runs a file of this folder alone, here and on other hosts."""
    return [sys.executable, "-I", str(Path(__file__).with_name(module))]


def survey(
    hosts: Sequence[Host], ssh: Ssh, interface: str | None
) -> tuple[dict[Host, View], list[DistribError]]:
    """Ask every host for its view.

    Args:
        hosts: Which ones; of each as many free ports are asked for as it has slots.
        ssh: How to reach other hosts.
        interface: The network interface to use on every host; `None` takes the one that ssh uses.

    Returns:
        The views of the hosts that are there, in the order of `hosts`, and what is wrong with the
        others: an `UnreachableHostError` if one does not answer, a `ConfigurationError` if it is
        not set up like this host, or has no such `interface`.
    """
    asked = {host: _ask(host, ssh) for host in hosts if not host.is_local}
    found: dict[Host, View] = {}
    wrong: list[DistribError] = []
    for host in sorted(hosts, key=lambda host: host not in asked):  # The others know this one's.
        try:
            if host in asked:
                found[host] = view(host.name, _answer(host, asked[host]), interface)
            else:
                seen_as = [its_view.launcher for its_view in found.values()]
                found[host] = own_view(host.slots, seen_as, interface)
        except (UnreachableHostError, ConfigurationError) as error:
            wrong.append(error)
    return {host: found[host] for host in hosts if host in found}, wrong


def _ask(host: Host, ssh: Ssh) -> subprocess.Popen[str]:
    if shutil.which("ssh") is None:
        raise ConfigurationError(
            f"{host.name} is another host, and there is no ssh to reach it by."
        )
    words = [*beside("probe.py"), f"--ports={host.slots}", f"--directory={os.getcwd()}"]
    return subprocess.Popen(
        ssh.command(host.name, words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _answer(host: Host, process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise UnreachableHostError(
            f"{host.name} accepts the connection but has not answered in {ANSWER_SECONDS:.0f} s; "
            f"see what holds it up: ssh -o BatchMode=yes {host.name} true"
        ) from None
    if process.returncode == SSH_FAILED:
        raise UnreachableHostError(
            f"cannot reach {host.name}: {err.strip()}\nThis must work, and ask nothing: "
            f"ssh -o BatchMode=yes {host.name} true"
        )
    if process.returncode != 0:
        raise ConfigurationError(
            f"{host.name} lacks what this host has, {shlex.join(beside('probe.py')[::2])}: "
            f"{err.strip()}\nInstall the same environment at the same place on every host."
        )
    answer = dict(json.loads(out.splitlines()[-1]))  # A shell's start-up files may say more.
    if not answer["directory"]:
        raise ConfigurationError(
            f"{host.name} has no folder {os.getcwd()}, in which the script is to be started; call "
            "distrib run in a folder that all hosts have."
        )
    return answer


def view(host: str, answer: Mapping[str, Any], interface: str | None) -> View:
    """Return another host's view.

    Args:
        host: Its name.
        answer: What `probe.py` says there.
        interface: The network interface to use; `None` takes that of the connection.

    Raises:
        ConfigurationError: If it is not there.
    """
    addresses = answer["interfaces"]
    if interface is None:
        own, launcher = answer["own"], answer["launcher"]
        interface = _interface_with(own, addresses, host)
    else:
        own = _address_on(interface, addresses, host)
        launcher = _address_on(interface, probe.interface_addresses(), "this host")
    return View(own, interface, launcher, tuple(answer["ports"]))


def own_view(ports: int, seen_as: Sequence[str], interface: str | None) -> View:
    """Return the view of the launcher's host, where nothing but the others can tell its address.

    Args:
        ports: How many free ones to name.
        seen_as: The address by which each of the other hosts knows this one.
        interface: See `view`.
    """
    addresses = probe.interface_addresses()
    if interface is not None:
        own = _address_on(interface, addresses, "this host")
    else:
        own = seen_as[0] if seen_as else LOOPBACK
        interface = _interface_with(own, addresses, "this host")
    return View(own, interface, own, tuple(probe.free_ports(ports)))


def _interface_with(address: str, addresses: dict[str, str], host: str) -> str:
    for name, its_address in addresses.items():
        if its_address == address:
            return name
    raise ConfigurationError(
        f"{host} is reached at {address}, but {host} has {addresses}; name the network that the "
        "hosts share with --network-interface."
    )


def _address_on(interface: str, addresses: dict[str, str], host: str) -> str:
    if interface not in addresses:
        raise ConfigurationError(
            f"--network-interface {interface}: {host} has no such interface with an IPv4 address; "
            f"it has {', '.join(addresses)}."
        )
    return addresses[interface]
