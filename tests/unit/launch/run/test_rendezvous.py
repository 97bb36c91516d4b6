import http.client
import json
import subprocess
from contextlib import nullcontext
from dataclasses import replace

import pytest

from distrib.errors import ConfigurationError
from distrib.launch.hosts.network import View
from distrib.launch.hosts.placement import Host, parse_hosts, place_ranks
from distrib.launch.run.rendezvous import (
    MAX_VARIABLE_BYTES,
    common_environment,
    horovod_environment,
    interpreter_environment,
    multiworker_environment,
    server,
    worker_addresses,
)

DEFAULTS = (
    *("TF_CPP_MIN_LOG_LEVEL", "HOROVOD_GLOO_TIMEOUT_SECONDS"),
    *("PYTHONUNBUFFERED", "PYTHONFAULTHANDLER"),
)
HOSTS = parse_hosts("h0:1,h1:2")
PLACEMENTS = place_ranks(HOSTS, 3)
VIEWS = {
    HOSTS[0]: View("10.0.0.1", "eth0", "10.0.0.1", (4001,)),
    HOSTS[1]: View("10.0.0.2", "ib0", "10.0.0.1", (4002, 4003)),
}


def test_horovod() -> None:
    environment = horovod_environment(PLACEMENTS[2], VIEWS[HOSTS[1]], 5000)
    assert environment == {
        "HOROVOD_HOSTNAME": "h1",
        "HOROVOD_RANK": "2",
        "HOROVOD_SIZE": "3",
        "HOROVOD_LOCAL_RANK": "1",
        "HOROVOD_LOCAL_SIZE": "2",
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": "ib0",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": "5000",
        "NCCL_SOCKET_IFNAME": "ib0",
    }


@pytest.mark.parametrize(
    ("first_port", "ports"), [(None, (4001, 4002, 4003)), (7000, (7000, 7000, 7001))]
)
def test_multiworker(first_port: int | None, ports: tuple[int, ...]) -> None:
    addresses = worker_addresses(PLACEMENTS, VIEWS, first_port)
    assert addresses == [f"10.0.0.{n}:{port}" for n, port in zip((1, 2, 2), ports, strict=True)]
    environment = multiworker_environment(PLACEMENTS[2], addresses)
    assert json.loads(environment["TF_CONFIG"]) == {
        "cluster": {"worker": addresses},
        "task": {"type": "worker", "index": 2},
    }


def test_variables_of_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    chief = interpreter_environment(PLACEMENTS[0])
    assert chief == {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    assert interpreter_environment(PLACEMENTS[1]) == {**chief, "TF_CPP_MIN_LOG_LEVEL": "2"}
    for placement in PLACEMENTS:
        assert common_environment(placement) == {"HOROVOD_GLOO_TIMEOUT_SECONDS": "30"}


@pytest.mark.parametrize(("size", "seconds"), [(2, 30), (64, 70), (128, 193)])
def test_many_ranks_wait_longer_for_each_other(
    monkeypatch: pytest.MonkeyPatch, size: int, seconds: int
) -> None:
    monkeypatch.delenv("HOROVOD_GLOO_TIMEOUT_SECONDS", raising=False)
    placement = replace(PLACEMENTS[0], size=size)
    assert common_environment(placement)["HOROVOD_GLOO_TIMEOUT_SECONDS"] == str(seconds)


def test_variables_that_the_user_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DEFAULTS:
        monkeypatch.setenv(name, "")
    assert interpreter_environment(PLACEMENTS[1]) == {}
    assert common_environment(PLACEMENTS[1]) == {}


def test_the_server() -> None:
    pytest.importorskip("horovod.runner.http.http_server")
    host = Host("localhost", 2)
    placements, views = place_ranks([host], 2), {host: View("127.0.0.1", "lo", "127.0.0.1", (1, 2))}

    def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()

    with server(placements, views) as port:
        assert ask("GET", "/global/0")[0] == 404
        assert ask("PUT", "/global/0", b"address")[0] == 200
        assert ask("GET", "/global/0") == (200, b"address")
    with pytest.raises(ConnectionRefusedError):
        ask("GET", "/global/0")
    with server(placements, views) as port:  # The next attempt's server has no keys of this one.
        assert ask("GET", "/global/0")[0] == 404


def test_more_addresses_than_a_variable_can_hold() -> None:
    def addresses(count: int) -> list[str]:
        hosts = [Host(f"h{n}", 1) for n in range(count)]
        views = {host: View("10.100.100.100", "eth0", "10.0.0.1", (20000,)) for host in hosts}
        return worker_addresses(place_ranks(hosts, count), views, None)

    assert len(addresses(5000)) == 5000
    with pytest.raises(ConfigurationError, match=r"6000 ranks has 138\d{3} bytes; Linux passes"):
        addresses(6000)


def test_the_longest_variable_that_a_process_can_be_given() -> None:
    for length, is_accepted in ((MAX_VARIABLE_BYTES - 1, True), (MAX_VARIABLE_BYTES, False)):
        environment = {"TF_CONFIG": "x" * (length - len("TF_CONFIG="))}
        with nullcontext() if is_accepted else pytest.raises(OSError, match="Argument list"):
            subprocess.run(["/bin/true"], env=environment, check=True)
