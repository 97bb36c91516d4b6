"""Cost of the coordinator of `distrib run --join` as the number of hosts grows.

    python benchmarks/thousand_hosts.py [--hosts 10 100 1000] [--slots 8]

The coordinator is real and runs one rank. One other process plays all other hosts and their ranks
(`common/fake_hosts.py`). The phases of a job: the hosts join; all ranks start; they train, with two
heartbeats a second from each; a host is lost, so all other ranks fail, and the job starts again
when the host has come back; all ranks finish. For each phase the table has the seconds that passed
and, in parentheses, the coordinator's CPU seconds. On a busy machine compare the latter.
"""

from __future__ import annotations

import argparse
import errno
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common.fake_hosts import FakeHosts

TRAINING_SECONDS = 10.0
HEARTBEAT_SECONDS = 0.5
REJOIN_SECONDS = 1.0
RANK_SECONDS = 60.0  # To wait for the coordinator's own rank.
LOST_PEER = 76
ERROR = 'Traceback (most recent call last):\n  File "train.py", line 1, in <module>\n' + (
    "horovod.common.exceptions.HorovodInternalError: Horovod has been shut down.\n"
)
# The coordinator's own rank: sends one heartbeat, and ends with the code that it reads.
RANK = """
import os, sys
fd = int(os.environ["DISTRIB_HEARTBEAT"].partition(":")[0])
os.write(fd, b'{"phase": "training", "step": 1, "wait_seconds": 0.5}\\n')
sys.exit(int(open(sys.argv[1]).readline()))
"""
COLUMNS = ("join", "start", "train", "restart", "finish")


class Coordinator:
    """A real coordinator, in a process of its own."""

    def __init__(self, folder: Path, hosts: int, slots: int) -> None:
        self.port = free_port()
        self._fifo = folder / f"codes-{hosts}"
        os.mkfifo(self._fifo)
        self._output = folder / f"output-{hosts}"
        script = folder / "rank.py"
        script.write_text(RANK)
        # A fake host would be asked for spares as for ranks.
        options = ["--no-spares", "--join", f"localhost:{self.port}"]
        options += ["-np", str(hosts * slots + 1)]
        command = [sys.executable, "-P", "-m", "distrib.launch.cli", "run", *options]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, str(script), str(self._fifo)], stdout=output, stderr=output
            )

    def end_rank(self, code: int) -> None:
        """Have the coordinator's own rank end, which reads the code as soon as it runs."""
        deadline = time.monotonic() + RANK_SECONDS
        while True:
            try:
                fifo = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError as error:  # Nobody reads.
                if error.errno != errno.ENXIO or time.monotonic() > deadline:
                    raise
            if self.process.poll() is not None:
                raise ChildProcessError(self.output.decode(errors="replace"))
            time.sleep(0.01)
        with open(fifo, "w") as file:
            file.write(f"{code}\n")

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def status(self, name: str) -> int:
        """Return a number from the process's status: `VmHWM` (KiB), `Threads`."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition(f"{name}:")[2].split()[0])

    @property
    def output(self) -> bytes:
        return self._output.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[10, 100, 1000], metavar="N")
    parser.add_argument("--slots", type=int, default=8, help="ranks on each host [8]")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    titles = "".join(f"{column:>17}" for column in COLUMNS)
    print(f" hosts  ranks{titles}   memory threads  output", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for hosts in options.hosts:
            measure(Path(folder), hosts, options.slots)


def measure(folder: Path, count: int, slots: int) -> None:
    """Run a job through all phases, and print its row of the table."""
    coordinator = Coordinator(folder, count, slots)
    try:
        measure_job(coordinator, count, slots)
    finally:
        coordinator.process.kill()


def measure_job(coordinator: Coordinator, count: int, slots: int) -> None:
    hosts = FakeHosts(("127.0.0.1", coordinator.port), count, slots)
    ranks = count * slots
    threads = 0
    print(f"{count:6}{ranks + 1:7}", end="", flush=True)

    def phase(work: Callable[[], None]) -> None:
        nonlocal threads
        began, cpu = time.monotonic(), coordinator.cpu_seconds
        work()
        seconds, cpu = time.monotonic() - began, coordinator.cpu_seconds - cpu
        threads = max(threads, coordinator.status("Threads"))
        print(f"{f'{seconds:.1f} ({cpu:.2f})':>17}", end="", flush=True)

    def join() -> None:
        hosts.join(hosts.hosts)
        hosts.serve(lambda: hosts.surveys == count)

    def restart() -> None:
        lost = hosts.hosts[count // 2]
        hosts.leave(lost)
        coordinator.end_rank(LOST_PEER)  # First: the coordinator kills it if the others take long.
        hosts.end_ranks(LOST_PEER, ERROR)
        time.sleep(REJOIN_SECONDS)
        hosts.join([lost])
        hosts.serve(lambda: hosts.training == ranks)
        assert f" on {lost.name} was lost".encode() in coordinator.output, "another host is blamed"

    def finish() -> None:
        coordinator.end_rank(0)
        hosts.end_ranks(0)
        hosts.serve(lambda: hosts.is_over)

    wait_for_port(coordinator.port)
    phase(join)
    phase(lambda: hosts.serve(lambda: hosts.training == ranks))
    phase(lambda: hosts.train(TRAINING_SECONDS, HEARTBEAT_SECONDS))
    phase(restart)
    memory = coordinator.status("VmHWM") / 1024
    phase(finish)
    assert coordinator.process.wait() == 0, coordinator.output
    output = coordinator.output
    lines, kilobytes = len(output.splitlines()), len(output) / 1024
    print(f"{memory:6.0f} MB {threads:7}  {lines} lines, {kilobytes:.0f} KB", flush=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for_port(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


if __name__ == "__main__":
    main()
