"""Reports what the launcher must know about a host before it starts ranks there.

How the hosts reach each other is read from the ssh session, which knows the addresses of both of
its ends. Like the rank agent, this is run by its path, with the standard library alone.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import struct
import sys
from contextlib import ExitStack

SIOCGIFADDR = 0x8915


def interface_addresses() -> dict[str, str]:
    """Return the IPv4 address of each network interface that has one, by the interface's name."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(query, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # It has no IPv4 address.
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def free_ports(count: int) -> list[int]:
    """Return TCP ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for port in sockets:
            port.bind(("", 0))
        return [port.getsockname()[1] for port in sockets]


def describe_network(launcher: str, own: str, ports: int) -> dict[str, object]:
    """Return what the launcher needs to know of this host's network.

    Args:
        launcher: The launcher's address, as this host sees it.
        own: This host's address, as the launcher sees it.
        ports: How many free ports to report.
    """
    return {
        "launcher": launcher,
        "own": own,
        "interfaces": interface_addresses(),
        "ports": free_ports(ports),
    }


def main() -> None:
    """Print this host's network as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ports", type=int, required=True, help="report this many free ports")
    parser.add_argument(
        "--directory", required=True, help="check that this working directory exists"
    )
    options = parser.parse_args()
    launcher, _, own, _ = os.environ["SSH_CONNECTION"].split()
    answer = describe_network(launcher, own, options.ports)
    answer["directory"] = os.path.isdir(options.directory)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
