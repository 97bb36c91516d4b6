"""What the launcher must know about a host before it starts anything there.

How the hosts see each other is asked where it is known: an ssh session knows the addresses of both
its ends. Like the keeper, this is run by its path, with nothing but the standard library.
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
            except OSError:  # It has none.
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def free_ports(count: int) -> list[int]:
    """Return TCP ports that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def surroundings(launcher: str, own: str, ports: int) -> dict[str, object]:
    """Return what the launcher needs to know of this host's network.

    Args:
        launcher: The launcher's address, from here.
        own: This host's, from there.
        ports: How many free ones to name.
    """
    return {
        "launcher": launcher,
        "own": own,
        "interfaces": interface_addresses(),
        "ports": free_ports(ports),
    }


def main() -> None:
    """Print, as JSON, what is known on this host."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ports", type=int, required=True, help="how many free ports to name")
    parser.add_argument("--directory", required=True, help="the ranks' working directory")
    options = parser.parse_args()
    launcher, _, own, _ = os.environ["SSH_CONNECTION"].split()
    answer = surroundings(launcher, own, options.ports)
    answer["directory"] = os.path.isdir(options.directory)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
