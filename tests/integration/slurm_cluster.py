"""A real Slurm on this machine: three nodes, which are the hosts of `hosts.py`, and its controller.

Each node is a process tree with a network and a host name of its own, so jobs use the network as on
a real cluster, and a node can be switched off. The controller runs on the first node. Two
partitions share the nodes: jobs of `high` preempt those of `low`, which get SIGTERM, 20 seconds,
and are queued again. Nothing is visible outside the hosts, and everything ends with them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hosts as rig
from stores import Daemon

PROGRAMS = ("munged", "sbatch", "scontrol", "slurmctld", "slurmd", "sinfo", "srun")
TIMEOUT = 300.0  # Seconds; most waits take ten on an idle machine.

_SETTINGS = """
ClusterName=test
SlurmctldHost=h0
SlurmUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
# A job that is queued again waits until its old credential has expired: by default two minutes, at
# least five seconds.
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
# Without control groups, which may not be available here.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
# Use the CPUs and memory below, not those that a node detects.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1
# Settings of sites that the script must not depend on.
JobRequeue=0
KillOnBadExit=1
WaitTime=1
NodeName=h[0-2] CPUs=4 RealMemory=1000
PartitionName=low Nodes=h[0-2] Default=YES PriorityTier=1 GraceTime=20
PartitionName=high Nodes=h[0-2] PriorityTier=2
"""


def missing() -> str | None:
    """Why there can be no Slurm here, or `None`."""
    programs = [program for program in PROGRAMS if shutil.which(program) is None]
    if programs:
        packages = "munge slurm-client slurmctld slurmd"
        return f"{', '.join(programs)} not found: apt-get install {packages}"
    return rig.missing()


@dataclass(frozen=True)
class Batch:
    """A submitted job."""

    cluster: Cluster
    number: str
    output: Path

    def facts(self) -> dict[str, str]:
        """Return Slurm's facts of the job, such as JobState, Restarts, ExitCode and NodeList."""
        report = self.cluster.command("scontrol", "--oneliner", "show", "job", self.number)
        return dict(word.split("=", 1) for word in report.split() if "=" in word)

    def wait_for(self, description: str, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not {description}: {self.facts()}\n{self.written()}")
            time.sleep(0.1)

    def wait_for_text(self, text: str, times: int = 1) -> None:
        """Wait until the job has written a text this many times."""
        self.wait_for(f"{times} times {text!r}", lambda: self.written().count(text) >= times)

    def wait_for_state(self, *states: str) -> dict[str, str]:
        """Wait until the job is in one of these states; return what Slurm reports then."""
        self.wait_for(" or ".join(states), lambda: self.facts()["JobState"] in states)
        return self.facts()

    def written(self) -> str:
        """Return its output up to now."""
        return self.output.read_text() if self.output.exists() else ""


@dataclass(frozen=True)
class Cluster:
    """A Slurm cluster."""

    hosts: list[rig.Host]
    folder: Path
    environment: dict[str, str]

    def command(self, *words: str) -> str:
        """Run a command of Slurm's on the first node, and return what it prints."""
        done = self.hosts[0].run(words, env=self.environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout

    def submit(self, *words: str, **variables: str) -> Batch:
        """Submit a job by `sbatch`, with options and variables."""
        output = self.folder / "output-%j"
        command = ["sbatch", "--parsable", f"--output={output}", *words]
        done = self.hosts[0].run(command, env={**self.environment, **variables})
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        number = done.stdout.strip()
        return Batch(self, number, self.folder / f"output-{number}")


@contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """Make a cluster in an empty folder.

    Its jobs find the programs of this Python's environment in their PATH.
    """
    for name in ("hosts", "state"):
        (folder / name).mkdir()
    settings, key, socket = folder / "slurm.conf", folder / "munge.key", folder / "munge.socket"
    settings.write_text(_SETTINGS.format(folder=folder))
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM", "SBATCH", "SRUN"))  # Set if the tests run in a Slurm job.
    }
    environment["SLURM_CONF"] = str(settings)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"socket": socket, "key-file": key, "seed-file": folder / "munge.seed"}
    options |= {"pid-file": folder / "munged.pid", "log-file": folder / "munged.log"}
    command = ["munged", "--foreground", "--force"]
    munged = Daemon([*command, *(f"--{k}={v}" for k, v in options.items())], folder / "munged.out")
    munged.start()
    try:
        with rig.hosts(folder / "hosts") as hosts:
            cluster = Cluster(hosts, folder, environment)
            _wait_for("munged", folder, socket.exists)
            _start(cluster, hosts[0], "slurmctld", "-D")
            for host in hosts:
                _start(cluster, host, "slurmd", "-D", "-N", host.name)
            _wait_for("all nodes idle", folder, lambda: _idle(cluster) == "3")
            yield cluster
    finally:
        munged.kill9()


def _start(cluster: Cluster, host: rig.Host, *command: str) -> None:
    """Start a program in the foreground, which ends with the host."""
    with (cluster.folder / f"{command[0]}-{host.name}.out").open("wb") as out:
        host.start(
            command, env=cluster.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )


def _idle(cluster: Cluster) -> str:
    command = ["sinfo", "--noheader", "--partition=low", "--states=idle", "--format=%D"]
    return cluster.hosts[0].run(command, env=cluster.environment).stdout.strip()


def _wait_for(description: str, folder: Path, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.out")))
            raise RuntimeError(f"not {description}:\n{logs}")
        time.sleep(0.1)
