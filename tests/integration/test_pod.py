"""`distrib run` as the first process of a container, started and stopped as by the kubelet.

The kernel treats process 1 of any namespace as it does in a pod. So the tests make namespaces with
`unshare` everywhere, and with podman, under the restrictions of a pod's security context, where it
can run. The container uses this machine's own programs, so no image is needed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DISTRIB = [sys.executable, "-P", "-m", "distrib.launch.cli"]
RUN = [*DISTRIB, "run", "-np", "1", "--backend", "multiworker"]
UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc"]
UNSHARE += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
# As in the manifests: no root, no capabilities, no writable files except in /tmp. Limits that are
# higher than a container may have are lowered.
PODMAN = ["podman", "run", "--rm", "--user=1000:1000"]
PODMAN += ["--read-only", "--read-only-tmpfs=false"]
PODMAN += ["--cap-drop=all", "--security-opt=no-new-privileges", "--env=HOME=/tmp"]
PODMAN += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", f"--workdir={ROOT}"]
SHOWN = {"/usr", "/etc", str(ROOT), sys.prefix, sys.base_prefix}
MADE = ("/dev", "/proc", "/run", "/runs", "/sys", "/tmp")
SECONDS = 120

STOP = """
import signal, sys, time
def stop(number, frame):
    print("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready")
while True:
    time.sleep(600)
"""
# Two ranks that stop together, as training ranks do, and finish when they are restarted.
TWICE = """
import json, os, signal, sys, time
from pathlib import Path
place = Path(os.environ["CHECKPOINT_DIR"])
if (place / "stop").exists():
    (place / f"finished-{json.loads(os.environ['TF_CONFIG'])['task']['index']}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda number, frame: (place / "stop").touch())
print("ready")
while not (place / "stop").exists():
    time.sleep(0.05)
sys.exit(75)
"""
# Leaves an orphan, which then ends.
ORPHAN = """
import os, sys, time
from pathlib import Path
def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
read, write = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        while os.getppid() != 1:
            time.sleep(0.01)
        os.write(write, str(os.getpid()).encode())
    os._exit(0)
os.wait()
orphan = os.read(read, 20).decode()
print("the parent of", orphan, "is process 1")
for _ in range(3000):
    if not os.path.exists(f"/proc/{orphan}"):
        print("reaped")
        sys.exit(0)
    time.sleep(0.01)
sys.exit(f"{orphan} is {state(orphan)}")
"""
# Kills the parent of its parent: the rank's agent is a child of the supervisor.
MURDER = """
import os, time
from pathlib import Path
stat = Path(f"/proc/{os.getppid()}/stat").read_text()
os.kill(int(stat.rpartition(")")[2].split()[1]), 9)
time.sleep(600)
"""


class Container:
    """A process that is the first one of its namespace."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def wait(self) -> int:
        return self.process.wait(SECONDS)


class Unshare:
    """Makes namespaces by `unshare`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._containers: list[Container] = []

    def start(self, command: list[str], *_: str) -> Container:
        return self._start([*UNSHARE, *command])

    def _start(self, command: list[str]) -> Container:
        output = self._folder / f"output-{len(self._containers)}"
        with output.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        self._containers.append(Container(process, output))
        return self._containers[-1]

    def signal(self, container: Container, number: int) -> None:
        pid = container.process.pid
        (first,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(first), number)

    def probe(self) -> list[str]:
        return [*UNSHARE, "true"]

    def close(self) -> None:
        for container in self._containers:
            if container.process.poll() is None:
                self.signal(container, signal.SIGKILL)
            container.process.wait()


Maker = TypeVar("Maker", bound=Unshare)


class Podman(Unshare):
    """Makes containers by podman."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.scratch = folder / "tmp"
        self.scratch.mkdir()
        self.scratch.chmod(0o777)
        self._root = folder / "root"
        for place in (*SHOWN, *MADE):
            (self._root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for link in ("bin", "lib", "lib64", "sbin"):
            (self._root / link).symlink_to(f"usr/{link}")
        self._names: dict[int, str] = {}

    def command(self, *options: str) -> list[str]:
        shown = [f"--volume={place}:{place}:ro" for place in sorted(SHOWN)]
        path = f"--env=PATH={Path(sys.executable).parent}:/usr/bin:/bin"
        scratch = f"--volume={self.scratch}:/tmp"
        network = [] if any("--network" in option for option in options) else ["--network=none"]
        return [*PODMAN, *network, *shown, path, scratch, *options, "--rootfs", str(self._root)]

    def name(self, container: Container) -> str:
        return self._names[id(container)]

    def start(self, command: list[str], *options: str) -> Container:
        name = f"distrib-{secrets.token_hex(6)}"
        container = self._start([*self.command(f"--name={name}", *options), *command])
        self._names[id(container)] = name
        return container

    def signal(self, container: Container, number: int) -> None:
        kill = ["podman", "kill", f"--signal={number}", self.name(container)]
        subprocess.run(kill, capture_output=True)

    def run_inside(self, container: Container, command: list[str]) -> int:
        return subprocess.run(["podman", "exec", self.name(container), *command]).returncode

    def probe(self) -> list[str]:
        return [*self.command(), *DISTRIB, "--version"]


@lru_cache
def missing(kind: type[Unshare]) -> str | None:
    """Return why these namespaces cannot be made here, `None` if they can."""
    with tempfile.TemporaryDirectory() as folder:
        command = kind(Path(folder)).probe()
        return _missing(command)


def _missing(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    errors = done.stderr.strip().splitlines() or ["no message"]
    return f"{command[0]} cannot run here: {errors[-1]}" if done.returncode else None


def made(kind: type[Maker], folder: Path) -> Iterator[Maker]:
    why = missing(kind)
    if why is not None:
        pytest.skip(why)
    maker = kind(folder)
    yield maker
    maker.close()


@pytest.fixture
def unshare(tmp_path: Path) -> Iterator[Unshare]:
    yield from made(Unshare, tmp_path)


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Podman]:
    yield from made(Podman, tmp_path)


def script(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


def test_sigterm_is_forwarded_and_75_returned(unshare: Unshare) -> None:
    pod = unshare.start([*RUN, *script(STOP)])
    pod.wait_for("ready")
    unshare.signal(pod, signal.SIGTERM)
    assert pod.wait() == 75
    assert "saved" in pod.output


@pytest.mark.parametrize("kind", ["unshare", "podman"])
def test_orphans_are_reaped(kind: str, request: pytest.FixtureRequest) -> None:
    pod = request.getfixturevalue(kind).start([*RUN, *script(ORPHAN)])
    assert pod.wait() == 0, pod.output
    assert "reaped" in pod.output


def test_the_exit_code_is_the_jobs(unshare: Unshare) -> None:
    assert unshare.start([*RUN, *script("raise SystemExit(78)")]).wait() == 78


def test_a_killed_supervisor_ends_the_pod_with_137(unshare: Unshare) -> None:
    """The kernel kills the process with the most memory, which may be the supervisor."""
    pod = unshare.start([*RUN, *script(MURDER)])
    assert pod.wait() == 137


def test_the_pods_of_the_manifests(podman: Podman, tmp_path: Path) -> None:
    """Two pods, as the kubelet would start them; one is evicted and replaced, and both finish."""
    render = [*DISTRIB, "k8s", "render", "--name=digits", "--image=none", "--backend=multiworker"]
    render += ["--pvc=disk", "--checkpoint-dir=/runs/17", "--", "python", "-u", "-c", TWICE]
    manifests = subprocess.run(render, check=True, capture_output=True).stdout
    objects = {each["kind"]: each for each in yaml.safe_load_all(manifests)}
    (container,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    environment = {
        **{each["name"]: each["value"] for each in container["env"] if "value" in each},
        **objects["ConfigMap"]["data"],
        "JOB_NAME": objects["Job"]["metadata"]["name"],
        "DISTRIB_JOIN_TOKEN": "token of the test",  # From the Secret.
    }
    command = [expanded(word, environment) for word in container["command"] + container["args"]]
    runs = tmp_path / "runs"
    (runs / "17").mkdir(parents=True)
    (runs / "17").chmod(0o777)
    # In place of the Service: the pods share a network namespace.
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost digits-0 digits-1 digits-0.digits\n")
    shared = [f"--volume={runs}:/runs", "--no-hosts", f"--volume={hosts}:/etc/hosts:ro"]
    shared += [f"--env={name}={value}" for name, value in environment.items()]

    def start(index: int, *options: str) -> Container:
        return podman.start(command, *shared, f"--hostname=digits-{index}", *options)

    first = start(0)
    first.wait_for("waiting for hosts")
    beside = f"--network=container:{podman.name(first)}"
    second = start(1, beside)
    first.wait_for("[rank 1] ready")
    for probe in ("startupProbe", "livenessProbe"):
        assert podman.run_inside(first, container[probe]["exec"]["command"]) == 0
    podman.signal(second, signal.SIGTERM)
    assert second.wait() == 75, second.output
    again = start(1, beside)
    assert first.wait() == 0, first.output
    again.wait_for("the job has finished")
    podman.signal(again, signal.SIGTERM)  # The Job is complete.
    assert again.wait() == 75, again.output
    assert sorted(os.listdir(runs / "17")) == ["finished-0", "finished-1", "stop"]


def expanded(word: str, environment: dict[str, str]) -> str:
    """Return a word of a command with its `$(NAME)` replaced, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], word)
