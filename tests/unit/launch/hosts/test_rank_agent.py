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

from distrib.launch.hosts.channel import Frames
from distrib.launch.hosts.network import beside

FOREVER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def start(command: list[str], **spec: Any) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    process = subprocess.Popen(beside("rank_agent.py"), stdin=pipe, stdout=pipe, stderr=pipe)
    full = {"command": command, "directory": "/", "environment": {}, "terminals": {}, "lease": None}
    tell(process, json.dumps({**full, **spec}) + "\n")
    return process


def tell(process: "subprocess.Popen[bytes]", text: str) -> None:
    assert process.stdin
    process.stdin.write(text.encode())
    process.stdin.flush()


class End(NamedTuple):
    code: int | None
    out: bytes
    err: bytes
    beats: list[Any]
    complaints: bytes


class Heard:
    """What a keeper has passed on."""

    def __init__(self) -> None:
        self.frames = Frames()
        self.streams = {1: b"", 2: b""}
        self.beats: list[Any] = []

    def take(self, data: bytes) -> None:
        output, beats = self.frames.take(data)
        self.beats += beats
        for stream, content in output:
            self.streams[stream] += content


heard: dict["subprocess.Popen[bytes]", Heard] = {}


def end(process: "subprocess.Popen[bytes]") -> End:
    """Wait for the keeper without closing its standard input, which would kill the rank."""
    assert process.stdout
    assert process.stderr
    said = heard.pop(process, None) or Heard()
    while data := os.read(process.stdout.fileno(), 65536):
        said.take(data)
    complaints = process.stderr.read()
    process.wait()
    return End(said.frames.exit_code, said.streams[1], said.streams[2], said.beats, complaints)


def first_line(process: "subprocess.Popen[bytes]", stream: int = 1) -> bytes:
    """Wait for the first line that the rank writes on a stream."""
    assert process.stdout
    said = heard.setdefault(process, Heard())
    while b"\n" not in said.streams[stream]:
        data = os.read(process.stdout.fileno(), 65536)
        assert data
        said.take(data)
    return said.streams[stream].partition(b"\n")[0]


def started(process: "subprocess.Popen[bytes]") -> None:
    assert first_line(process) == b"up"


def wait_for_the_end_of(pid: int) -> None:
    """Return when there is no such process, or only its exit code."""
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
    pytest.fail(f"process {pid} has survived")


def test_output_exit_code_directory_and_environment(tmp_path: Path) -> None:
    script = "pwd; echo $ANSWER; echo problem >&2; exit 7"
    process = start(["sh", "-c", script], directory=str(tmp_path), environment={"ANSWER": "42"})
    assert end(process)[:3] == (7, f"{tmp_path}\n42\n".encode(), b"problem\n")


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -ABRT $$", 134), ("kill $$", 143)]
)
def test_exit_codes(script: str, code: int) -> None:
    assert end(start(["sh", "-c", script]))[0] == code


def test_signals_reach_the_rank_and_no_other() -> None:
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
    tell(process, f"{signal.SIGTERM:d}\n")
    assert end(process)[0] == 75


def test_signals_to_the_keeper_are_passed_over() -> None:
    """Slurm, for one, signals every process there is."""
    process = start(FOREVER)
    started(process)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        process.send_signal(number)
    tell(process, "\n9\n")
    assert end(process)[0] == 137


def test_the_rank_does_not_inherit_what_the_keeper_ignores() -> None:
    script = "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    assert end(start([sys.executable, "-c", script]))[1] == b"True\n"


@pytest.mark.parametrize("death", ["launcher", "keeper"])
def test_the_rank_dies_with_the_launcher_and_with_the_keeper(death: str) -> None:
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
def test_nothing_is_left_of_the_ranks_group(how: str) -> None:
    process = start(["sh", "-c", f"sleep 600 & echo $!; {how}"])
    code, out, *_ = end(process)
    assert code in (3, 137)
    wait_for_the_end_of(int(out))


def test_a_process_that_has_left_the_group_does_not_hold_the_keeper_up() -> None:
    process = start(["sh", "-c", "setsid sleep 600 & echo $!; echo last >&2"])
    code, out, err, *_ = end(process)
    assert (code, err) == (0, b"last\n")
    os.kill(int(out), signal.SIGKILL)


def test_an_end_by_any_error_is_one() -> None:
    """A network that is silent gives another error than a connection that was closed."""
    ours, its = pty.openpty()
    tty.setraw(its)
    order = {"command": FOREVER, "directory": "/", "environment": {}, "terminals": {}}
    os.write(its, json.dumps({**order, "lease": None}).encode() + b"\n")
    pipe = subprocess.PIPE
    process = subprocess.Popen(beside("rank_agent.py"), stdin=ours, stdout=pipe, stderr=pipe)
    started(process)
    os.close(its)
    code, *_, complaints = end(process)
    assert (code, complaints) == (137, b"")
    os.close(ours)


def test_a_launcher_that_is_silent_is_gone() -> None:
    process = start(FOREVER, lease=0.5)
    assert end(process)[:2] == (137, b"up\n")


def test_a_launcher_that_beats_is_there() -> None:
    process = start(["sh", "-c", "sleep 3; echo done"], lease=2.0)
    while process.poll() is None:
        time.sleep(0.05)
        if process.poll() is None:
            tell(process, "\n")
    assert end(process)[:2] == (0, b"done\n")


def test_beats_are_heard_while_the_output_is_blocked() -> None:
    """Whoever pauses the launcher's output, with `less` for one, must not kill the job."""
    process = start(["sh", "-c", "head -c 1000000 /dev/zero"], lease=2.0)
    for _ in range(60):
        time.sleep(0.05)
        tell(process, "\n")
    assert process.poll() is None
    code, out, *_ = end(process)
    assert (code, len(out)) == (0, 1000000)


def test_orders_are_heard_while_the_output_is_blocked() -> None:
    process = start(["sh", "-c", "echo $$ >&2; exec head -c 1000000 /dev/zero"])
    pid = int(first_line(process, stream=2))
    tell(process, "9\n")
    wait_for_the_end_of(pid)
    assert end(process)[0] == 137


def test_a_terminal_leaves_the_bytes_as_they_are() -> None:
    script = "test -t 1 && test ! -t 2 && stty size <&1; printf 'a\\r\\nb\\n\\tc'; tty; true"
    process = start(["sh", "-c", script], terminals={"1": [33, 99]})
    assert end(process)[:2] == (0, b"33 99\na\r\nb\n\tcnot a tty\n")


def test_much_output_through_a_terminal() -> None:
    process = start(["sh", "-c", "head -c 1000000 /dev/zero"], terminals={"1": [33, 99]})
    assert len(end(process)[1]) == 1000000


@pytest.mark.parametrize(
    "spec", [{"command": ["no-such-program"]}, {"command": ["true"], "directory": "/no/such"}]
)
def test_what_cannot_be_started(spec: dict[str, Any]) -> None:
    process = start(**spec)
    complaints = end(process).complaints
    assert process.returncode == 64
    assert complaints.startswith(b"distrib: cannot start on ")
    assert b"No such file or directory: '" in complaints


def test_signs_of_life() -> None:
    script = (
        "from distrib.heartbeat import TRAINING, heartbeat\n"
        "heartbeat.note(step=7)\nheartbeat.enter(TRAINING)\nheartbeat.committed(5)\n"
    )
    assert end(start([sys.executable, "-c", script])).beats == [
        {"phase": "training", "step": 7},
        {"phase": "training", "step": 7, "committed": 5},
    ]


def test_a_host_that_has_come_by_itself_knows_its_command() -> None:
    pipe = subprocess.PIPE
    command = [*beside("rank_agent.py"), "echo", "mine"]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    spec = {"command": None, "directory": None, "environment": {}, "terminals": {}, "lease": None}
    tell(process, json.dumps(spec) + "\n")
    assert end(process)[:2] == (0, b"mine\n")


def test_no_orders() -> None:
    done = subprocess.run(beside("rank_agent.py"), stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (64, b"", b"")
