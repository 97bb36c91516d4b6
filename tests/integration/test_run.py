"""`distrib run` with real ranks, on this machine and on several hosts."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hosts as rig
import pytest
from harness import forked

RUN = [sys.executable, "-P", "-m", "distrib.launch.cli", "run"]
PLAIN = ["--backend", "multiworker"]  # Only sets TF_CONFIG, so ranks need no TensorFlow.

needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"
)
needs_hosts = pytest.mark.skipif(rig.missing() is not None, reason=str(rig.missing()))

# Adds up the ranks in each step. Arguments: what goes wrong, and the number of steps.
ADD = """
import os, sys
what, steps = sys.argv[1], int(sys.argv[2])
rank = int(os.environ.get("HOROVOD_RANK") or os.environ["OMPI_COMM_WORLD_RANK"])
if what == "absent" and rank == 1:
    sys.exit(5)
import horovod.tensorflow as hvd
import tensorflow as tf
hvd.init()
try:
    for step in range(steps):
        total = hvd.allreduce(tf.constant([1.0 + rank]), op=hvd.Sum, name="total").numpy()[0]
        if step == 3:
            print(f"rank {rank} of {hvd.size()} on {os.uname().nodename}: {total}")
            if rank == 1 and what == "raise":
                raise ValueError("this is the cause")
            if rank == 1 and what == "kill":
                os.kill(os.getpid(), 9)
except tf.errors.UnknownError as error:  # As distrib does.
    print("Traceback (most recent call last):", error, file=sys.stderr)
    sys.exit(76)
"""

# Waits for SIGTERM; all ranks but the first one take a second to save.
WAIT = """
import json, os, signal, sys, time
rank = os.environ.get("HOROVOD_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK")
rank = rank or json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def stop(number, frame):
    if int(rank) > 0:
        time.sleep(1)
    print("saved on", os.uname().nodename)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready on", os.uname().nodename)
while True:
    time.sleep(600)
"""


class Job:
    """A running launcher, with its output in files."""

    def __init__(self, folder: Path, start: Callable[..., Any], command: list[str]) -> None:
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = start(command, stdout=out, stderr=err)

    def wait_for(self, text: str, times: int) -> None:
        """Wait until the ranks have written a text this many times."""
        deadline = time.monotonic() + 120
        while self.out.read_text().count(text) < times:
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no {text} in:\n{self.out.read_text()}\n{self.err.read_text()}")
            time.sleep(0.02)

    def end(self) -> int:
        return int(self.process.wait(120))

    def errors(self) -> list[str]:
        return self.err.read_text().splitlines()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def make(text: str) -> str:
        path = tmp_path / "train.py"
        path.write_text(text)
        return str(path)

    return make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Start a command here, which is killed when the test ends."""
    jobs = []

    def begin(command: list[str], env: Mapping[str, str] | None = None) -> Job:
        def here(command: list[str], **outputs: Any) -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, env={**os.environ, **(env or {})}, **outputs)

        jobs.append(Job(tmp_path, here, command))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.process.kill()
        job.process.wait()


@pytest.fixture
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[rig.Host]]:
    with rig.hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


def start_on(host: rig.Host, folder: Path, command: list[str], **env: str) -> Job:
    """Start a command on one of several hosts; it dies with the host."""

    def there(command: list[str], **outputs: Any) -> subprocess.Popen[bytes]:
        return host.start(command, env={**os.environ, **env}, **outputs)

    return Job(folder, there, command)


def family(pid: int) -> list[int]:
    """All descendants of a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in map(int, children) for one in (child, *family(child))]


def wait_for_the_end_of(running: Callable[[], list[int]]) -> None:
    deadline = time.monotonic() + 30
    while left := running():
        if time.monotonic() > deadline:
            pytest.fail(f"processes {left} are still running")
        time.sleep(0.02)


def of_these(pids: list[int]) -> Callable[[], list[int]]:
    return lambda: [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()]


# Here, without Horovod


def test_sigterm_reaches_all_ranks_and_each_may_save(write: Any, start: Any) -> None:
    job = start([*RUN, "-np", "3", *PLAIN, write(WAIT)])
    job.wait_for("ready", 3)
    pids = family(job.process.pid)
    assert len(pids) == 6
    job.process.terminate()
    assert job.end() == 75
    assert job.out.read_text().count("saved") == 3
    assert job.errors()[-1].startswith("distrib: stopped as requested.")
    assert of_these(pids)() == []


def test_everything_dies_with_a_killed_launcher(write: Any, start: Any) -> None:
    script = "import subprocess; subprocess.Popen(['sleep', '600']); print('ready')\n" + WAIT
    job = start([*RUN, "-np", "2", *PLAIN, write(script)])
    job.wait_for("ready on", 2)
    pids = family(job.process.pid)
    assert len(pids) == 6
    job.process.kill()
    wait_for_the_end_of(of_these(pids))


def test_lines_of_many_ranks_stay_whole(write: Any, start: Any) -> None:
    script = (
        "import os, sys\n"
        "for number in range(3000):\n"
        "    os.write(1, b'out'); os.write(1, b' %d\\n' % number)\n"
        "    print('err', number, file=sys.stderr)\n"
    )
    job = start([*RUN, "-np", "4", *PLAIN, write(script)])
    assert job.end() == 0
    for path, word in ((job.out, "out"), (job.err, "err")):
        lines = path.read_text().splitlines()
        assert all(re.fullmatch(rf"(\[rank [123]\] )?{word} \d+", line) for line in lines)
        for rank in ("", "[rank 1] ", "[rank 2] ", "[rank 3] "):
            own = [line for line in lines if line.startswith(f"{rank}{word}")]
            assert own == [f"{rank}{word} {number}" for number in range(3000)]


def test_rank_0_has_the_terminal_and_all_ranks_are_logged(write: Any, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "print(sys.stdout.isatty(), end='')\n"
        "if sys.stdout.isatty(): print('\\r1/2', end=''); print('\\r2/2')\n"
    )
    logs = tmp_path / "logs"
    command = [*RUN, "-np", "2", *PLAIN, "--output-dir", str(logs), write(script)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs)
    os.close(theirs)
    shown = b""
    while chunk := read_terminal(ours):
        shown += chunk
    os.close(ours)
    assert process.wait() == 0
    # The terminal itself ends lines with both characters.
    assert b"True\r1/2\r2/2\r\n" in shown
    assert b"[rank 1] False\r\n" in shown
    assert (logs / "rank-0.log").read_bytes() == b"True\r1/2\r2/2\n"
    assert (logs / "rank-1.log").read_bytes() == b"False"


def read_terminal(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # No process has it open any more.
        return b""


# Here, with Horovod


@needs_horovod
@pytest.mark.slow
def test_three_ranks_add_up(write: Any, start: Any) -> None:
    job = start([*RUN, "-np", "3", *forked(Path(write(ADD)), "", "5")])
    assert job.end() == 0, job.err.read_text()
    here = os.uname().nodename
    assert sorted(job.out.read_text().splitlines()) == [
        f"[rank 1] rank 1 of 3 on {here}: 6.0",
        f"[rank 2] rank 2 of 3 on {here}: 6.0",
        f"rank 0 of 3 on {here}: 6.0",
    ]


@needs_horovod
@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code", "last"),
    [
        (
            "raise",
            1,
            "distrib: rank 1 on localhost ended with exit code 1: ValueError: this is the",
        ),
        ("absent", 5, "distrib: rank 1 on localhost ended with exit code 5"),
        ("kill", 76, "distrib: rank 1 on localhost was killed by SIGKILL. Run the same command"),
    ],
)
def test_the_cause_is_reported(what: str, code: int, last: str, write: Any, start: Any) -> None:
    script = write(ADD)
    command = [*RUN, "-np", "3", "--attempts", "0", *forked(Path(script), what, "1000000")]
    # Ranks also wait as long for each other's start, which busy cores put seconds apart.
    job = start(command, {"HOROVOD_GLOO_TIMEOUT_SECONDS": "15"})
    assert job.end() == code, job.err.read_text()
    assert rig.processes(script) == []
    errors = job.errors()
    assert errors[-1].startswith(last)
    if what == "raise":
        first = next(n for n, line in enumerate(errors) if "Traceback" in line)
        assert errors[first].startswith("[rank 1] ")
        cause = errors.index("[rank 1] ValueError: this is the cause")
        symptoms = [n for n, line in enumerate(errors) if "Horovod has been shut down" in line]
        assert symptoms  # Of two ranks, once if they are the same.
        assert first < cause < min(symptoms)


# On several hosts


@needs_hosts
@needs_horovod
@pytest.mark.slow
def test_hosts_add_up(three: list[rig.Host], write: Any, tmp_path: Path) -> None:
    command = [*RUN, "-H", "h0:1,h1:2,h2:1", *forked(Path(write(ADD)), "", "5")]
    job = start_on(three[0], tmp_path, command)
    assert job.end() == 0, job.err.read_text()
    assert sorted(job.out.read_text().splitlines()) == [
        "[rank 1] rank 1 of 4 on h1: 10.0",
        "[rank 2] rank 2 of 4 on h1: 10.0",
        "[rank 3] rank 3 of 4 on h2: 10.0",
        "rank 0 of 4 on h0: 10.0",
    ]


@needs_hosts
@needs_horovod
@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill", "cut"])
def test_a_host_is_lost(what: str, three: list[rig.Host], write: Any, tmp_path: Path) -> None:
    options = ["-H", "h0:1,h1:1,h2:1", "--attempts", "0"]
    command = [*RUN, *options, *forked(Path(write(ADD)), "", "1000000")]
    job = start_on(three[0], tmp_path, command, HOROVOD_GLOO_TIMEOUT_SECONDS="5")
    job.wait_for("of 3 on", 3)
    if what == "kill":
        three[1].kill()
    else:
        three[1].cut()
    assert job.end() == 76
    assert job.errors()[-1].startswith("distrib: the connection to rank 1 on h1 was lost. Run the")
    for host in three:
        wait_for_the_end_of(lambda host=host: host.processes("train.py"))


@needs_hosts
def test_a_signal_reaches_other_hosts(three: list[rig.Host], write: Any, tmp_path: Path) -> None:
    job = start_on(three[0], tmp_path, [*RUN, "-H", "h0:1,h1:1,h2:2", *PLAIN, write(WAIT)])
    job.wait_for("ready on", 4)
    (launcher,) = three[0].processes("distrib.launch.cli")
    os.kill(launcher, signal.SIGTERM)
    assert job.end() == 75
    lines = job.out.read_text().splitlines()
    assert sorted(line for line in lines if "saved" in line) == [
        "[rank 1] saved on h1",
        "[rank 2] saved on h2",
        "[rank 3] saved on h2",
        "saved on h0",
    ]


@needs_hosts
def test_ranks_of_other_hosts_die_with_the_launcher(
    three: list[rig.Host], write: Any, tmp_path: Path
) -> None:
    """The launcher's host needs no rank."""
    job = start_on(three[0], tmp_path, [*RUN, "-H", "h1:1,h2:1", *PLAIN, write(WAIT)])
    job.wait_for("ready on", 2)
    assert [len(host.processes("train.py")) for host in three[1:]] == [1, 1]
    (launcher,) = three[0].processes("distrib.launch.cli")
    os.kill(launcher, signal.SIGKILL)
    for host in three:
        wait_for_the_end_of(lambda host=host: host.processes("train.py"))
        wait_for_the_end_of(lambda host=host: host.processes("rank_agent.py"))


@needs_hosts
def test_the_environment_reaches_other_hosts_on_no_command_line(
    three: list[rig.Host], write: Any, tmp_path: Path
) -> None:
    script = write(
        "import os, pathlib\n"
        "print(os.getcwd(), *(os.environ.get(n) for n in ('AWS_KEY', 'MINE', 'OTHER')))\n"
        "lines = [path.read_bytes() for path in pathlib.Path('/proc').glob('[0-9]*/cmdline')]\n"
        "print(any(b'hidden' in line for line in lines))\n"
    )
    command = [*RUN, "-H", "h1", *PLAIN, "--env", "MINE", script]
    environment = {"AWS_KEY": "hidden", "MINE": "hidden too", "OTHER": "no"}
    done = three[0].run(command, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{Path.cwd()} hidden hidden too None\nFalse\n"


@needs_hosts
def test_ssh_and_network_options(three: list[rig.Host], write: Any) -> None:
    script = write("import os; print(os.environ['TF_CONFIG'])")
    options = ["--ssh-port", "2222", "--network-interface", "eth0", "--port", "7000"]
    done = three[0].run([*RUN, "-H", "h1:2,h2", *options, *PLAIN, script])
    assert done.returncode == 0, done.stderr
    assert '{"worker":["10.77.0.2:7000","10.77.0.2:7001","10.77.0.3:7000"]}' in done.stdout


@needs_hosts
def test_a_host_that_is_off_is_reported_before_any_rank_starts(
    three: list[rig.Host], write: Any
) -> None:
    three[2].kill()
    done = three[0].run([*RUN, "-H", "h0,h1,h2", *PLAIN, write("print('started')")])
    assert (done.returncode, done.stdout) == (76, "")
    assert done.stderr.startswith("distrib: cannot reach h2: ssh: connect to host h2 port 22: ")
