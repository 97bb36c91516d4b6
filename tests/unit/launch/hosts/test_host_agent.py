"""One host agent alone; `test_coordinator.py` has it together with its coordinator."""

import socket
import sys
from multiprocessing import Pipe

import pytest

from distrib.launch.hosts.host_agent import HostAgent
from distrib.launch.hosts.placement import Host
from distrib.launch.hosts.protocol import receive
from distrib.launch.hosts.task import Task
from distrib.launch.process.launcher_context import LauncherContext
from distrib.launch.process.liveness_file import LivenessFile
from distrib.launch.process.signals import Signals


# There is no coordinator at this address, so no agent can be started that connects to it.
@pytest.mark.parametrize("command", [["sh", "-c", "true"], [sys.executable, "train.py"]])
def test_a_spare_that_cannot_be_started_is_refused(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    context = LauncherContext(print, LivenessFile(None), Signals())
    agent = HostAgent(address, b"", Host("h1", 1), Task(command, {}), 60, 20, False, context)
    ours, theirs = Pipe()
    with socket.socket() as unused:
        agent._handle({"start": "some key", "attempt": None}, theirs, unused)
    assert ours.poll()
    assert receive(ours) == {"refused": "some key"}
