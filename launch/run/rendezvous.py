"""How the ranks find each other: environment variables, and for Horovod a server.

Horovod's Gloo ranks meet at a small key-value server, which the launcher runs. TensorFlow's
multi-worker strategy needs only a list of all addresses, TF_CONFIG.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from distrib.environment import GLOO_TIMEOUT_VARIABLE, HOROVOD_SIZE_VARIABLE
from distrib.errors import ConfigurationError
from distrib.startup_noise import LOG_LEVEL

from ..hosts.network import View
from ..hosts.placement import Host, RankPlacement

Environment = dict[str, str]
GLOO_SECONDS = 30  # Also until ranks notice that the network to another one is cut.
GLOO_SECONDS_A_PAIR = 0.01  # Of ranks, which all look each other up (docs/scaling.md).
MAX_VARIABLE_BYTES = 128 * 1024  # MAX_ARG_STRLEN of Linux: of `NAME=value` and its last byte.


def interpreter_environment(placement: RankPlacement) -> Environment:
    """Return variables that are read when Python starts or TensorFlow is imported.

    A spare does both before it becomes a rank, so it starts with them. Those that the user has set
    are left out (docs/launching.md).
    """
    defaults = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # Prints the stacks of all threads of a rank that crashes.
    }
    if placement.rank > 0:  # Rank 0 prints the same.
        defaults[LOG_LEVEL] = "2"
    return _unset(defaults)


def common_environment(placement: RankPlacement) -> Environment:
    """Return further variables for every rank, without those that the user has set."""
    seconds = GLOO_SECONDS + int(GLOO_SECONDS_A_PAIR * placement.size**2)
    return _unset({GLOO_TIMEOUT_VARIABLE: str(seconds)})


def _unset(defaults: Environment) -> Environment:
    return {name: value for name, value in defaults.items() if name not in os.environ}


def horovod_environment(placement: RankPlacement, view: View, port: int) -> Environment:
    """Return the variables of one of Horovod's ranks.

    Args:
        placement: Where the rank runs.
        view: The network, as the rank's host sees it.
        port: The rendezvous server's.
    """
    return {
        "HOROVOD_HOSTNAME": placement.hostname,
        "HOROVOD_RANK": str(placement.rank),
        HOROVOD_SIZE_VARIABLE: str(placement.size),
        "HOROVOD_LOCAL_RANK": str(placement.local_rank),
        "HOROVOD_LOCAL_SIZE": str(placement.local_size),
        "HOROVOD_CROSS_RANK": str(placement.cross_rank),
        "HOROVOD_CROSS_SIZE": str(placement.cross_size),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": view.interface,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": view.launcher,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "NCCL_SOCKET_IFNAME": view.interface,
    }


@contextmanager
def server(placements: Sequence[RankPlacement], views: Mapping[Host, View]) -> Iterator[int]:
    """Run Horovod's rendezvous server for one attempt, and yield its port.

    Each attempt gets a new server, because the keys of a failed attempt would break the next one.
    The server does not authenticate clients. So if all ranks reach it by the same address, it
    listens on that address only.

    Raises:
        ConfigurationError: If Horovod is not installed.
    """
    try:
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer
    except ImportError as error:
        raise ConfigurationError(
            f"--backend horovod needs Horovod, which cannot be imported here ({error}); install it "
            "with `distrib horovod build`, or choose --backend multiworker."
        ) from error
    addresses = {view.launcher for view in views.values()}
    address = addresses.pop() if len(addresses) == 1 else ""
    server = RendezvousHTTPServer((address, 0), RendezvousHandler, 0)
    server.daemon_threads = True
    server.init(placements)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def multiworker_environment(placement: RankPlacement, addresses: Sequence[str]) -> Environment:
    """Return the variables of one of `MultiWorkerMirroredStrategy`'s workers.

    Args:
        placement: Where the rank runs.
        addresses: `worker_addresses()` of all ranks.
    """
    config = {
        "cluster": {"worker": list(addresses)},
        "task": {"type": "worker", "index": placement.rank},
    }
    return {"TF_CONFIG": json.dumps(config, separators=(",", ":"))}


def worker_addresses(
    placements: Sequence[RankPlacement], views: Mapping[Host, View], first_port: int | None
) -> list[str]:
    """Return `address:port` of every rank.

    Args:
        placements: Where all ranks run.
        views: The network, by host.
        first_port: Port of each host's first rank, whose other ranks get the ports after it; `None`
            takes free ports.

    Raises:
        ConfigurationError: If they are more than TF_CONFIG can hold.
    """
    addresses = []
    for placement in placements:
        view, local_rank = views[placement.host], placement.local_rank
        port = view.ports[local_rank] if first_port is None else first_port + local_rank
        addresses.append(f"{view.address}:{port}")
    longest = len(f"TF_CONFIG={multiworker_environment(placements[-1], addresses)['TF_CONFIG']}")
    if longest >= MAX_VARIABLE_BYTES:
        raise ConfigurationError(
            f"--backend multiworker: TF_CONFIG with the addresses of {len(addresses)} ranks has "
            f"{longest} bytes; Linux passes on {MAX_VARIABLE_BYTES - 1} in one variable. Use fewer "
            "ranks, for example one on each host with all of its GPUs, or --backend horovod."
        )
    return addresses
