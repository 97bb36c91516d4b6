"""Whether the host's own name has an address, without which Horovod's Gloo crashes."""

from __future__ import annotations

import socket

from distrib.errors import ConfigurationError


def check_host_name() -> None:
    """Check that Gloo can look the name of this host up.

    The Gloo of Horovod 0.28.1 takes the first address of the name, whether there is one or not:
    without one `hvd.init()` ends with a segmentation fault.

    Raises:
        ConfigurationError: If the name has no address.
    """
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ConfigurationError(
            f"The name of this host, {name}, has no address ({error.strerror}), and Horovod's Gloo "
            f"crashes without one. Add the line `127.0.1.1 {name}` to /etc/hosts, or the name to "
            "DNS."
        ) from error
