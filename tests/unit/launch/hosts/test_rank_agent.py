import json
import os
import pty
import signal
import subprocess
import sys
import time
import tty
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from distrib import heartbeat
from distrib.errors import EXIT_USAGE
from distrib.launch.hosts import rank_agent
from distrib.launch.hosts.channel import FrameParser
from distrib.launch.hosts.network import script_command

FOREVER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def start(command: list[str], **spec: Any) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        script_command("rank_agent.py"), stdin=pipe, stdout=pipe, stderr=pipe
    )
    full = {"command": command, "directory": "/", "environment": {}, "terminals": {}, "lease": None}
    send(process, json.dumps({**full, **spec}) + "\n")
    return process


def send(process: "subprocess.Popen[bytes]", text: str) -> None:
    assert process.stdin
    process.stdin.write(text.encode())
    process.stdin.flush()


class AgentResult(NamedTuple):
    code: int | None
    out: bytes
    err: bytes
    heartbeats: list[Any]
    agent_errors: bytes


class Received:
    """What a rank agent has forwarded."""

    def __init__(self) -> None:
        self.parser = FrameParser()
        self.streams = {1: b"", 2: b""}
        self.heartbeats: list[Any] = []

    def feed(self, data: bytes) -> None:
        output, heartbeats = self.parser.feed(data)
        self.heartbeats += heartbeats
        for stream, content in output:
            self.streams[stream] += content


received_from: dict["subprocess.Popen[bytes]", Received] = {}


def end(process: "subprocess.Popen[bytes]") -> AgentResult:
    """Wait for the rank agent without closing its standard input, which would kill the rank."""
    assert process.stdout
    assert process.stderr
    received = received_from.pop(process, None) or Received()
    while data := os.read(process.stdout.fileno(), 65536):
        received.feed(data)
    agent_errors = process.stderr.read()
    process.wait()
    return AgentResult(
        received.parser.exit_code,
        received.streams[1],
        received.streams[2],
        received.heartbeats,
        agent_errors,
    )


def first_line(process: "subprocess.Popen[bytes]", stream: int = 1) -> bytes:
    """Wait for the first line that the rank writes on a stream."""
    assert process.stdout
    received = received_from.setdefault(process, Received())
    while b"\n" not in received.streams[stream]:
        data = os.read(process.stdout.fileno(), 65536)
        assert data
        received.feed(data)
    return received.streams[stream].partition(b"\n")[0]


def started(process: "subprocess.Popen[bytes]") -> None:
    assert first_line(process) == b"up"


def wait_for_the_end_of(pid: int) -> None:
    """Return when the process does not exist, or is a zombie."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    pytest.fail(f"process {pid} is still running")


def test_constants_that_the_agent_cannot_import() -> None:
    assert rank_agent.HEARTBEAT_VARIABLE == heartbeat.VARIABLE
    assert rank_agent.EXIT_USAGE == EXIT_USAGE


def test_output_exit_code_directory_and_environment(tmp_path: Path) -> None:
    script = "pwd; echo $ANSWER; echo problem >&2; exit 7"
    process = start(["sh", "-c", script], directory=str(tmp_path), environment={"ANSWER": "42"})
    assert end(process)[:3] == (7, f"{tmp_path}\n42\n".encode(), b"problem\n")


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -ABRT $$", 134), ("kill $$", 143)]
)
def test_exit_codes(script: str, code: int) -> None:
    assert end(start(["sh", "-c", script]))[0] == code


def test_signals_reach_the_rank_but_not_its_children() -> None:
    """A pool of data workers must not die while the chief saves."""
    script = (
        "import os, signal, sys, time\n"
        "def stop(number, frame):\n"
        "    time.sleep(0.5)\n"
        "    if os.waitpid(child, os.WNOHANG) == (0, 0): sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "child = os.fork()\n"
        "if child == 0: signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "else: print('up', flush=True)\n"
        "while True: signal.pause()\n"
    )
    process = start([sys.executable, "-c", script])
    started(process)
    send(process, f"{signal.SIGTERM:d}\n")
    assert end(process)[0] == 75


def test_signals_to_the_agent_are_ignored() -> None:
    """Slurm, for one, signals every process of a job."""
    process = start(FOREVER)
    started(process)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        process.send_signal(number)
    send(process, "\n9\n")
    assert end(process)[0] == 137


def test_the_rank_does_not_inherit_ignored_signals() -> None:
    script = "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    assert end(start([sys.executable, "-c", script]))[1] == b"True\n"


@pytest.mark.parametrize("death", ["launcher", "agent"])
def test_the_rank_dies_with_the_launcher_and_with_the_agent(death: str) -> None:
    script = "import os; print(os.getpid(), flush=True); import time; time.sleep(600)"
    process = start([sys.executable, "-c", script])
    assert process.stdin
    pid = int(first_line(process))
    if death == "launcher":
        process.stdin.close()
    else:
        process.kill()
    wait_for_the_end_of(pid)
    process.wait()


@pytest.mark.parametrize("how", ["exit 3", "kill -KILL $$"])
def test_no_process_of_the_ranks_group_is_left(how: str) -> None:
    process = start(["sh", "-c", f"sleep 600 & echo $!; {how}"])
    code, out, *_ = end(process)
    assert code in (3, 137)
    wait_for_the_end_of(int(out))


def test_a_process_that_has_left_the_group_does_not_block_the_agent() -> None:
    process = start(["sh", "-c", "setsid sleep 600 & echo $!; echo last >&2"])
    code, out, err, *_ = end(process)
    assert (code, err) == (0, b"last\n")
    os.kill(int(out), signal.SIGKILL)


def test_any_read_error_ends_the_connection() -> None:
    """A silent network gives another error than a closed connection."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    spec = {"command": FOREVER, "directory": "/", "environment": {}, "terminals": {}}
    os.write(theirs, json.dumps({**spec, "lease": None}).encode() + b"\n")
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        script_command("rank_agent.py"), stdin=ours, stdout=pipe, stderr=pipe
    )
    started(process)
    os.close(theirs)
    code, *_, agent_errors = end(process)
    assert (code, agent_errors) == (137, b"")
    os.close(ours)


def test_the_rank_dies_when_the_lease_ends() -> None:
    process = start(FOREVER, lease=0.5)
    assert end(process)[:2] == (137, b"up\n")


def test_keepalives_renew_the_lease() -> None:
    process = start(["sh", "-c", "sleep 3; echo done"], lease=2.0)
    while process.poll() is None:
        time.sleep(0.05)
        if process.poll() is None:
            send(process, "\n")
    assert end(process)[:2] == (0, b"done\n")


def test_keepalives_count_while_the_output_is_blocked() -> None:
    """A user who pauses the launcher's output, with `less` for one, must not kill the job."""
    process = start(["sh", "-c", "head -c 1000000 /dev/zero"], lease=2.0)
    for _ in range(60):
        time.sleep(0.05)
        send(process, "\n")
    assert process.poll() is None
    code, out, *_ = end(process)
    assert (code, len(out)) == (0, 1000000)


def test_signals_reach_the_rank_while_the_output_is_blocked() -> None:
    process = start(["sh", "-c", "echo $$ >&2; exec head -c 1000000 /dev/zero"])
    pid = int(first_line(process, stream=2))
    send(process, "9\n")
    wait_for_the_end_of(pid)
    assert end(process)[0] == 137


def test_a_terminal_does_not_change_the_bytes() -> None:
    script = "test -t 1 && test ! -t 2 && stty size <&1; printf 'a\\r\\nb\\n\\tc'; tty; true"
    process = start(["sh", "-c", script], terminals={"1": [33, 99]})
    assert end(process)[:2] == (0, b"33 99\na\r\nb\n\tcnot a tty\n")


def test_much_output_through_a_terminal() -> None:
    process = start(["sh", "-c", "head -c 1000000 /dev/zero"], terminals={"1": [33, 99]})
    assert len(end(process)[1]) == 1000000


@pytest.mark.parametrize(
    "spec", [{"command": ["no-such-program"]}, {"command": ["true"], "directory": "/no/such"}]
)
def test_a_command_that_cannot_be_started(spec: dict[str, Any]) -> None:
    process = start(**spec)
    agent_errors = end(process).agent_errors
    assert process.returncode == 64
    assert agent_errors.startswith(b"distrib: cannot start on ")
    assert b"No such file or directory: '" in agent_errors


def test_heartbeats() -> None:
    script = (
        "from distrib.heartbeat import TRAINING, heartbeat\n"
        "heartbeat.note(step=7)\nheartbeat.enter(TRAINING)\nheartbeat.committed(5)\n"
    )
    assert end(start([sys.executable, "-c", script])).heartbeats == [
        {"phase": "training", "step": 7},
        {"phase": "training", "step": 7, "committed": 5},
    ]


def test_the_command_may_be_on_the_command_line() -> None:
    pipe = subprocess.PIPE
    command = [*script_command("rank_agent.py"), "echo", "mine"]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    spec = {"command": None, "directory": None, "environment": {}, "terminals": {}, "lease": None}
    send(process, json.dumps(spec) + "\n")
    assert end(process)[:2] == (0, b"mine\n")


def test_no_spec() -> None:
    done = subprocess.run(
        script_command("rank_agent.py"), stdin=subprocess.DEVNULL, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (64, b"", b"")
