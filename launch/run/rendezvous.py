"""How the ranks find each other: environment variables, and for Horovod a server.

Horovod's Gloo ranks meet at a small key-value server, which the launcher runs; TensorFlow's
multi-worker strategy needs nothing but a list of all addresses, TF_CONFIG.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from distrib.errors import ConfigurationError

from ..hosts.network import View
from ..hosts.placement import Host, Slot

Environment = dict[str, str]
LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def common_environment(slot: Slot) -> Environment:
    """Return what every rank gets, unless the user has set it: see docs/launching.md."""
    defaults = {
        "PYTHONUNBUFFERED": "1",
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "30",
        "PYTHONFAULTHANDLER": "1",  # Shows where a rank hangs, or crashes, in all of its threads.
    }
    if slot.rank > 0:  # Rank 0 says the same already.
        defaults[LOG_LEVEL] = "2"
    return {name: value for name, value in defaults.items() if name not in os.environ}


def horovod_environment(slot: Slot, view: View, port: int) -> Environment:
    """Return what makes a process one of Horovod's ranks.

    Args:
        slot: The rank's place.
        view: The network, from the rank's host.
        port: The rendezvous server's.
    """
    return {
        "HOROVOD_HOSTNAME": slot.hostname,
        "HOROVOD_RANK": str(slot.rank),
        "HOROVOD_SIZE": str(slot.size),
        "HOROVOD_LOCAL_RANK": str(slot.local_rank),
        "HOROVOD_LOCAL_SIZE": str(slot.local_size),
        "HOROVOD_CROSS_RANK": str(slot.cross_rank),
        "HOROVOD_CROSS_SIZE": str(slot.cross_size),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": view.interface,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": view.launcher,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "NCCL_SOCKET_IFNAME": view.interface,
    }


@contextmanager
def server(slots: Sequence[Slot], views: Mapping[Host, View]) -> Iterator[int]:
    """Run Horovod's rendezvous server for one attempt, and yield its port.

    It is a new one for each attempt, because the keys of one that failed would break the next. It
    asks nobody who they are, so it listens where the ranks look for it and nowhere else, if that is
    one place.

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
    server.init(slots)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def multiworker_environment(slot: Slot, addresses: Sequence[str]) -> Environment:
    """Return what makes a process one of `MultiWorkerMirroredStrategy`'s workers.

    Args:
        slot: The rank's place.
        addresses: `worker_addresses()` of all ranks.
    """
    config = {
        "cluster": {"worker": list(addresses)},
        "task": {"type": "worker", "index": slot.rank},
    }
    return {"TF_CONFIG": json.dumps(config)}


def worker_addresses(
    slots: Sequence[Slot], views: Mapping[Host, View], first_port: int | None
) -> list[str]:
    """Return `address:port` of every rank.

    Args:
        slots: All ranks' places.
        views: The network, by host.
        first_port: Port of each host's first rank, the next for the next; `None` takes free ones.
    """
    addresses = []
    for slot in slots:
        view = views[slot.host]
        port = view.ports[slot.local_rank] if first_port is None else first_port + slot.local_rank
        addresses.append(f"{view.address}:{port}")
    return addresses
