import socket
from multiprocessing.connection import Connection

import pytest

from distrib.errors import ConfigurationError, UsageError
from distrib.launch.hosts.protocol import (
    MAX_MESSAGE_BYTES,
    join_token,
    parse_address,
    receive,
    send,
    set_keepalive,
    set_read_timeout,
)


@pytest.mark.parametrize(("text", "address"), [("h0", ("h0", 7600)), ("h0.svc:99", ("h0.svc", 99))])
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":1", "h0:0", "h0:65536", "h0:x"])
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form HOST or HOST:PORT"):
        parse_address(text)


HOSTS = ["h0", "10.0.0.1", "0.0.0.0", "localhost.example.org", "::"]
LOOPBACK = ["localhost", "127.0.0.1", "127.9.9.9", "::1"]


@pytest.mark.parametrize("host", HOSTS + LOOPBACK)
def test_the_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIB_JOIN_TOKEN", "secret")
    assert join_token(host) == b"secret"


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("host", HOSTS)
def test_beyond_loopback_a_token_is_required(
    host: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISTRIB_JOIN_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("DISTRIB_JOIN_TOKEN", value)
    with pytest.raises(ConfigurationError, match=r"DISTRIB_JOIN_TOKEN.*openssl rand -hex 16"):
        join_token(host)


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_loopback_a_token_is_optional(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTRIB_JOIN_TOKEN", raising=False)
    assert join_token(host) == b""


def connections() -> tuple[Connection, Connection, socket.socket]:
    server, client = socket.create_server(("127.0.0.1", 0)), socket.socket()
    client.connect(server.getsockname())
    accepted, _ = server.accept()
    set_keepalive(accepted)
    server.close()
    return Connection(accepted.detach()), Connection(client.dup().detach()), client


def test_messages() -> None:
    one, other, client = connections()
    send(one, {"start": "key", "attempt": 3})
    send(one, {})
    assert [receive(other), receive(other)] == [{"start": "key", "attempt": 3}, {}]
    client.close()


@pytest.mark.parametrize("data", [b"not json", b"[1]", b"3"])
def test_an_invalid_message_is_a_lost_connection(data: bytes) -> None:
    one, other, client = connections()
    one.send_bytes(data)
    with pytest.raises(OSError, match="closed"):
        receive(other)
    client.close()


def test_a_connection_that_ends() -> None:
    one, other, client = connections()
    one.close()
    with pytest.raises(ConnectionError):
        receive(other)
    client.close()


def test_a_message_that_is_too_long() -> None:
    one, other, client = connections()
    one.send_bytes(bytes(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(OSError):
        receive(other)
    client.close()


def test_a_read_timeout() -> None:
    one, other, client = connections()
    set_read_timeout(client, 1)
    with pytest.raises(OSError):
        receive(other)
    set_read_timeout(client, 0)
    send(one, {"late": True})
    assert receive(other) == {"late": True}
    client.close()
