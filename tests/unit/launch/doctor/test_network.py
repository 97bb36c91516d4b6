import json
import socket
import time
from pathlib import Path

import pytest

from distrib.launch.doctor import network
from distrib.launch.doctor.finding import OK, PROBLEM, WARNING
from distrib.launch.doctor.network import check_hosts, check_network, check_port
from distrib.launch.doctor.packages import installed_version
from distrib.launch.hosts.network import Ssh
from distrib.launch.hosts.placement import Host

OTHER = Host("other", 2)


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ssh` that reaches this host, and answers questions about its clock from a file."""
    ssh, answer = tmp_path / "ssh", tmp_path / "answer"
    ssh.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != -- ]; do shift; done\n'
        f'case "$3" in *probe.py*) SSH_CONNECTION="127.0.0.1 1 127.0.0.1 2" exec sh -c "$3";; '
        f"*) cat {answer};; esac\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return answer


def told(skew: float = 0.0, **versions: str | None) -> str:
    here = {name: installed_version(name) for name in network.PACKAGES}
    return json.dumps({"time": time.time() + skew, "versions": {**here, **versions}})


def test_this_host() -> None:
    assert [each.subject for each in check_network()] == ["host name", "--join"]


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert check_port(port).level == WARNING
    assert check_port(port).level == OK


def test_a_host_like_this_one(answer: Path) -> None:
    answer.write_text(told())
    (finding,) = check_hosts([OTHER], Ssh(), None)
    assert (finding.level, finding.subject) == (OK, "other")


def test_a_host_that_differs(answer: Path) -> None:
    answer.write_text(told(-120, tensorflow="2.1", horovod=None))
    _, clock, *versions = check_hosts([OTHER], Ssh(), None)
    assert (clock.level, clock.text) == (WARNING, "its clock and this host's differ by 120 s")
    assert {each.level for each in versions} == {PROBLEM}
    assert versions[0].text.startswith("tensorflow 2.1 there, ")


def test_a_host_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho no route >&2\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (finding,) = check_hosts([OTHER], Ssh(), None)
    assert finding.level == PROBLEM
    assert "cannot reach other: no route" in finding.text
    assert "ssh -o BatchMode=yes other true" in finding.remedy
