import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from distrib.errors import ConfigurationError
from distrib.launch.hosts import network, probe
from distrib.launch.hosts.network import (
    Ssh,
    UnreachableHostError,
    View,
    probe_hosts,
    script_command,
)
from distrib.launch.hosts.placement import Host

HERE, FAR = Host("localhost", 1), Host("far", 2)


def probe_both(interface: str | None = None) -> dict[Host, View]:
    """Return the views of two hosts, or raise the error of the other host."""
    views, errors = probe_hosts([HERE, FAR], Ssh(), interface)
    for error in errors:
        assert FAR not in views or HERE not in views
        raise error
    return views


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called `ssh`, first on the path, which a test fills; it does nothing by default."""
    program = tmp_path / "ssh"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return program


def answering(program: Path, **changed: object) -> None:
    answer = {
        "launcher": "127.0.0.1",
        "own": "10.1.1.2",
        "interfaces": {"ib0": "10.1.1.2", "eth0": "10.2.2.2"},
        "ports": [4001, 4002],
        "directory": True,
    }
    program.write_text(f"#!/bin/sh\necho Welcome!\necho '{json.dumps({**answer, **changed})}'\n")


def test_the_ssh_command() -> None:
    command = Ssh(2222, "/key").command("h1", ["echo", "a b"])
    assert command[0] == "ssh"
    assert command[-7:] == ["-p", "2222", "-i", "/key", "--", "h1", "echo 'a b'"]
    assert "-oBatchMode=yes" in command
    assert not {"-p", "-i"} & set(Ssh().command("h1", ["true"]))


def test_hosts_use_the_addresses_of_the_ssh_connection(ssh: Path) -> None:
    answering(ssh)
    views = probe_both()
    assert views[FAR] == View("10.1.1.2", "ib0", "127.0.0.1", (4001, 4002))
    own = views[HERE]
    assert (own.address, own.interface, own.launcher) == ("127.0.0.1", "lo", "127.0.0.1")
    assert len(own.ports) == 1


def test_an_interface_by_name(ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(ssh)
    monkeypatch.setattr(probe, "interface_addresses", lambda: {"eth0": "10.2.2.1"})
    views = probe_both("eth0")
    assert views[HERE].address == "10.2.2.1"
    assert views[FAR] == View("10.2.2.2", "eth0", "10.2.2.1", (4001, 4002))


def test_ranks_on_this_host_alone_use_loopback() -> None:
    views, errors = probe_hosts([Host("localhost", 3)], Ssh(), None)
    (view,) = views.values()
    assert not errors
    assert (view.address, view.interface, view.launcher) == ("127.0.0.1", "lo", "127.0.0.1")
    assert len(set(view.ports)) == 3


def test_an_interface_that_does_not_exist(ssh: Path) -> None:
    answering(ssh)
    with pytest.raises(ConfigurationError, match=r"wlan0: far has no such interface.*ib0, eth0"):
        probe_both("wlan0")


def test_an_address_of_no_interface(ssh: Path) -> None:
    answering(ssh, launcher="192.0.2.1")
    with pytest.raises(ConfigurationError, match=r"reached at 192\.0\.2\.1.*--network-interface"):
        probe_both()


def test_without_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"far is another host, .* no ssh command"):
        probe_both()


def test_a_host_that_cannot_be_reached(ssh: Path) -> None:
    ssh.write_text("#!/bin/sh\necho 'Host key verification failed.' >&2\nexit 255\n")
    with pytest.raises(
        UnreachableHostError, match=r"cannot reach far: Host key .*failed"
    ) as caught:
        probe_both()
    assert caught.value.exit_code == 76
    assert "ssh -o BatchMode=yes far true" in str(caught.value)


def test_a_host_that_does_not_answer(ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh.write_text("#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setattr(network, "ANSWER_SECONDS", 0.2)
    with pytest.raises(UnreachableHostError, match="far accepts the connection but has not"):
        probe_both()


def test_a_host_without_this_environment(ssh: Path) -> None:
    ssh.write_text("#!/bin/sh\necho 'python: not found' >&2\nexit 127\n")
    with pytest.raises(ConfigurationError, match=r"far lacks .*python.*probe\.py: python: not"):
        probe_both()


def test_a_host_without_this_folder(ssh: Path) -> None:
    answering(ssh, directory=False)
    with pytest.raises(ConfigurationError, match=f"far has no folder {os.getcwd()}"):
        probe_both()


def test_the_probe(tmp_path: Path) -> None:
    """Run as ssh runs it, with the connection in an environment variable."""
    command = [*script_command("probe.py"), "--ports=3", f"--directory={tmp_path}"]
    environment = {"SSH_CONNECTION": "10.0.0.1 50000 127.0.0.1 22"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert (answer["launcher"], answer["own"]) == ("10.0.0.1", "127.0.0.1")
    assert answer["interfaces"]["lo"] == "127.0.0.1"
    assert answer["directory"] is True
    assert len(set(answer["ports"])) == 3
    for port in answer["ports"]:
        with socket.socket() as free:
            free.bind(("", port))
