"""How the coordinator and the hosts of `--join` talk: addresses, the token, messages.

Both sides prove that they know the token (DISTRIB_JOIN_TOKEN) by the challenges of
`multiprocessing.connection`, which also frames the messages; these are JSON. There is no default
token: without one, the coordinator listens on loopback only.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from ipaddress import ip_address
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from distrib.errors import ConfigurationError, UsageError

from .placement import NO_IPV6, is_ipv6

PORT = 7600
TOKEN_VARIABLE = "DISTRIB_JOIN_TOKEN"
ANSWER_SECONDS = 10.0
MAX_MESSAGE_BYTES = 1 << 20


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST[:PORT]`.

    Raises:
        UsageError: If it has another form.
    """
    if is_ipv6(text):
        raise UsageError(f"--join {text}: {NO_IPV6}.")
    host, _, port = text.partition(":")
    if not host or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise UsageError(f"--join {text}: not of the form HOST or HOST:PORT.")
    return host, int(port or PORT)


def join_token(host: str) -> bytes:
    """Return the secret that the hosts of a job share; empty for none, which only loopback allows.

    Args:
        host: The coordinator, as `--join` names it.

    Raises:
        ConfigurationError: If the variable is not set and `host` is not loopback.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").encode()
    if not token and not is_loopback(host):
        raise ConfigurationError(
            f"--join {host}: {TOKEN_VARIABLE} is not set, so any process that reaches the port "
            "could join the job. Set it to the same secret on all hosts, for example from "
            "`openssl rand -hex 16`; on Kubernetes create the Secret distrib-join-token "
            "(docs/kubernetes.md)."
        )
    return token


def is_loopback(host: str) -> bool:
    """Tell whether a name or address in `--join` means this machine alone.

    Other names are not resolved: many systems map their own host name to 127.0.1.1, while other
    hosts reach it at another address.
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # A name.
        return False


def connect(
    address: tuple[str, int], token: bytes, hello: Mapping[str, Any]
) -> tuple[Connection, socket.socket]:
    """Connect to a coordinator, and prove to each other that both sides know the token.

    Args:
        address: The coordinator's host and port.
        token: The secret.
        hello: The first message: which host this is, or which rank agent was requested.

    Returns:
        The connection for messages, and the socket below it.

    Raises:
        OSError: If there is no coordinator, or it is lost.
        ConfigurationError: If the coordinator has another token.
    """
    connection = socket.create_connection(address, timeout=ANSWER_SECONDS)
    connection.settimeout(None)
    set_keepalive(connection)
    set_read_timeout(connection, ANSWER_SECONDS)
    control = Connection(os.dup(connection.fileno()))
    try:
        answer_challenge(control, token)
        deliver_challenge(control, token)
        send(control, hello)
    except AuthenticationError as error:
        raise ConfigurationError(
            f"{address[0]} has another token than this host; give both the same {TOKEN_VARIABLE}."
        ) from error
    except EOFError as error:
        raise ConnectionError("the connection was closed") from error
    set_read_timeout(connection, 0)
    return control, connection


def set_keepalive(connection: socket.socket) -> None:
    """Notice within seconds that the other side has vanished."""
    set_option = connection.setsockopt
    set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    set_option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    set_option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    set_option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    set_option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
    set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def set_read_timeout(connection: socket.socket, seconds: float) -> None:
    """Let reads fail after a timeout, for every holder of the descriptor; 0 disables it."""
    value = struct.pack("ll", int(seconds), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


def send(control: Connection, message: Mapping[str, Any]) -> None:
    """Send a message."""
    control.send_bytes(json.dumps(message).encode())


def receive(control: Connection) -> dict[str, Any]:
    """Receive a message.

    Raises:
        OSError: If the connection is lost, or what arrives is not a message.
    """
    try:
        return dict(json.loads(control.recv_bytes(MAX_MESSAGE_BYTES)))
    except (EOFError, ValueError, TypeError) as error:
        raise ConnectionError("the connection was closed") from error
