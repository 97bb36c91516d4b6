import socket
from multiprocessing.connection import Connection

import pytest

from distrib.errors import UsageError
from distrib.launch.hosts.protocol import (
    LONGEST_MESSAGE,
    limit_reads,
    parse_address,
    prepare,
    receive,
    send,
    token,
)


@pytest.mark.parametrize(("text", "address"), [("h0", ("h0", 7600)), ("h0.svc:99", ("h0.svc", 99))])
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":1", "h0:0", "h0:65536", "h0:x"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form HOST or HOST:PORT"):
        parse_address(text)


def test_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIB_JOIN_TOKEN", "secret")
    assert token() == b"secret"
    monkeypatch.delenv("DISTRIB_JOIN_TOKEN")
    assert token()


def channels() -> tuple[Connection, Connection, socket.socket]:
    ours, its = socket.create_server(("127.0.0.1", 0)), socket.socket()
    its.connect(ours.getsockname())
    accepted, _ = ours.accept()
    prepare(accepted)
    ours.close()
    return Connection(accepted.detach()), Connection(its.dup().detach()), its


def test_messages() -> None:
    one, other, its = channels()
    send(one, {"start": "key", "attempt": 3})
    send(one, {})
    assert [receive(other), receive(other)] == [{"start": "key", "attempt": 3}, {}]
    its.close()


@pytest.mark.parametrize("data", [b"not json", b"[1]", b"3"])
def test_what_is_no_message_is_a_lost_connection(data: bytes) -> None:
    one, other, its = channels()
    one.send_bytes(data)
    with pytest.raises(OSError, match="closed"):
        receive(other)
    its.close()


def test_a_connection_that_ends() -> None:
    one, other, its = channels()
    one.close()
    with pytest.raises(ConnectionError):
        receive(other)
    its.close()


def test_too_long_a_message() -> None:
    one, other, its = channels()
    one.send_bytes(bytes(LONGEST_MESSAGE + 1))
    with pytest.raises(OSError):
        receive(other)
    its.close()


def test_a_limit_of_reading() -> None:
    one, other, its = channels()
    limit_reads(its, 1)
    with pytest.raises(OSError):
        receive(other)
    limit_reads(its, 0)
    send(one, {"late": True})
    assert receive(other) == {"late": True}
    its.close()
