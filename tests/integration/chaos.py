"""Random faults at random moments in one training job, until it finishes.

    python tests/integration/chaos.py --faults 100 --seed 1

Three ranks train on three hosts, each in namespaces of its own, as the pods of a Kubernetes Job
that is emulated (`job_controller.py`); checkpoints, tables and plots go to an S3 server on their
network. The seed alone determines the faults. When the job has finished, weights and history must
equal those of an undisturbed job, and no files may be left over.

Two things differ from a real Job: pods may fail more often, and the test itself kills a supervisor
that no longer touches its heartbeat file, as a liveness probe would do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts
from harness import JOB, environment, forked, result, undisturbed
from job_controller import IndexedJob, indexed_job
from kubelet import Pod

from distrib.launch.k8s.objects import build_objects
from distrib.launch.k8s.settings import Settings

KINDS = ("kill", "terminate", "freeze", "evict", "cut", "fill", "pause store", "unplug store")
LONGEST_DELAY = 12.0
LONGEST_FAULT = 8.0
STEP_TIMEOUT = 10.0
# How long a job may write nothing: some back-offs are that long.
MAX_SILENCE = 400.0
PROBE_SECONDS = 20.0
GRACE = 35  # Of a pod, in seconds; its ranks have 15 less.
PODS = 3
DISK = "24m"
STORE = "10.77.0.254"
PORT = 9000
SAMPLES = 870
BATCH = 16
STEPS_PER_FAULT = 30
SAVING = ("--store", "s3://bucket/run", "--save-freq", "5")
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key-id",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": f"http://{STORE}:{PORT}",
}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: One of `KINDS`.
        delay: Seconds since the one before.
        victim: From 0 to 1: which of the pods or processes that exist at the moment.
        seconds: How long it lasts, if it ends by itself.
    """

    kind: str
    delay: float
    victim: float
    seconds: float


def plan(seed: int, count: int) -> list[Fault]:
    """Return the faults of a seed."""
    rng = random.Random(seed)
    kinds = [*KINDS] * -(-count // len(KINDS))
    rng.shuffle(kinds)
    return [
        Fault(kind, rng.uniform(0, LONGEST_DELAY), rng.random(), rng.uniform(0.5, LONGEST_FAULT))
        for kind in kinds[:count]
    ]


class Store:
    """An S3 server on the pods' network, which can be paused and unplugged.

    Args:
        stack: Ends it.
        switch: The process whose network it is in.
        log: Where its output goes.
    """

    def __init__(self, stack: ExitStack, switch: int, log: Path) -> None:
        self._enter = ["nsenter", "--target", str(switch), "--net", "--"]
        self.plug()
        self._run("ip", "link", "set", "lo", "up")
        server = [sys.executable, "-P", "-m", "moto.server", "-H", STORE, "-p", str(PORT)]
        with log.open("wb") as file:
            self.process = subprocess.Popen([*self._enter, *server], stdout=file, stderr=file)
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)

    def ask(self, code: str) -> Any:
        """Run a line of Python there, with boto3's client as `s3`, and return what it makes."""
        client = "import boto3, json; from botocore.config import Config\n"
        client += "s3 = boto3.client('s3', config=Config(retries={'max_attempts': 20}))\n"
        done = subprocess.run(
            [*self._enter, sys.executable, "-P", "-c", f"{client}print(json.dumps({code}))"],
            env={**os.environ, **CREDENTIALS},
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def unplug(self) -> None:
        with suppress(subprocess.CalledProcessError):  # It is unplugged already.
            self._run("ip", "address", "del", f"{STORE}/24", "dev", "bridge")

    def plug(self) -> None:
        self._run("ip", "address", "replace", f"{STORE}/24", "dev", "bridge")

    def _run(self, *command: str) -> None:
        subprocess.run([*self._enter, *command], check=True)


class Chaos:
    """Injects the faults of a plan.

    Args:
        job: The victim.
        store: Its store.
        disk: What the pods' volumes are on.
        faults: The plan.
        say: Shows a message.
    """

    def __init__(
        self,
        job: IndexedJob,
        store: Store,
        disk: Path,
        faults: Sequence[Fault],
        say: Callable[[str], None],
    ) -> None:
        self._job = job
        self._store = store
        self._disk = disk
        self._faults = list(faults)
        self._say = say
        self._next = time.monotonic() + faults[0].delay
        self._reliefs: list[tuple[float, Callable[[], None]]] = []
        self.struck: Counter[str] = Counter()

    def step(self) -> None:
        """Inject and end faults, and probe pods, if it is time."""
        now = time.monotonic()
        for relief in [relief for relief in self._reliefs if relief[0] <= now]:
            self._reliefs.remove(relief)
            relief[1]()
        self._probe()
        if self._faults and now >= self._next:
            fault = self._faults.pop(0)
            self._next = now + (self._faults[0].delay if self._faults else 0.0)
            self._strike(fault)

    def relieve(self) -> None:
        """End all faults."""
        while self._reliefs:
            self._reliefs.pop()[1]()

    @property
    def left(self) -> int:
        """How many faults have not been injected."""
        return len(self._faults)

    def _strike(self, fault: Fault) -> None:
        self.struck[fault.kind] += 1
        pods = [pod for pod in self._job.pods.values() if pod.exit_code is None]
        if fault.kind == "pause store":
            self._store.pause()
            what, relief = "the store", self._store.go_on
        elif fault.kind == "unplug store":
            self._store.unplug()
            what, relief = "the store", self._store.plug
        elif fault.kind == "fill":
            what, relief = "the disk", self._fill()
        elif not pods:
            what, relief = "no running pod", _nothing
        else:
            pod = pods[int(fault.victim * len(pods))]
            what, relief = self._strike_pod(fault, pod)
        self._reliefs.append((time.monotonic() + fault.seconds, relief))
        self._say(f"{self.struck.total()}: {fault.kind}: {what}, {fault.seconds:.1f} s")

    def _strike_pod(self, fault: Fault, pod: Pod) -> tuple[str, Callable[[], None]]:
        name = f"pod {pod.index}"
        if fault.kind == "evict":
            self._job.evict(pod.index)
            return name, _nothing
        if fault.kind == "cut":
            pod.cut()
            return name, lambda: pod.mend() if pod.exit_code is None else None
        found = processes(pod)
        if not found:
            return f"no process in {name}", _nothing
        pid, what = found[int(fault.victim * 997) % len(found)]
        number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "freeze": signal.SIGSTOP}
        with suppress(ProcessLookupError):
            os.kill(pid, number[fault.kind])
        if fault.kind != "freeze" or fault.seconds > LONGEST_FAULT / 2:  # Half of them forever.
            return f"{what} in {name}", _nothing
        return f"{what} in {name}", lambda: _thaw(pid)

    def _fill(self) -> Callable[[], None]:
        ballast = self._disk / "ballast"
        with suppress(OSError), ballast.open("wb", 0) as file:
            while True:
                file.write(bytes(1 << 16))
        return lambda: ballast.unlink(missing_ok=True)

    def _probe(self) -> None:
        for pod in self._job.pods.values():
            with suppress(FileNotFoundError):
                heartbeat = self._disk / pod.folder.name / "tmp" / "heartbeat"
                age = time.time() - heartbeat.stat().st_mtime
                if age > PROBE_SECONDS and pod.exit_code is None and pod.kill_at is None:
                    self._say(f"   pod {pod.index} fails its liveness probe")
                    pod.send(signal.SIGKILL)


def processes(pod: Pod) -> list[tuple[int, str]]:
    """Return pid and role (supervisor, rank agent or rank) of each process of a pod."""
    found = []
    try:
        namespace = os.readlink(f"/proc/{pod.pid}/ns/pid")
    except OSError:  # It has just ended.
        return []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and os.readlink(entry / "ns" / "pid") == namespace:
                words = (entry / "cmdline").read_bytes()
                found.append((int(entry.name), _name(words)))
    return sorted(found)


def _name(words: bytes) -> str:
    for word, name in (
        (b"--join", "supervisor"),
        (b"rank_agent.py", "rank agent"),
        (b"stand_in", "stand-in"),
    ):
        if word in words:
            return name
    return "rank"


def _thaw(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _nothing() -> None:
    pass


def training(faults: int) -> list[str]:
    """Return the arguments of a job with enough steps for this many faults."""
    data = ["--samples", str(SAMPLES), "--batch-size", str(BATCH)]
    return [*data, "--epochs", str(_epochs(faults)), "--patience", "1000"]


def _epochs(faults: int) -> int:
    return -(-faults * STEPS_PER_FAULT // (SAMPLES // BATCH)) + 2


def pace(faults: Sequence[Fault]) -> float:
    """Return how long each step must sleep so that the job outlasts the faults [s]."""
    steps = _epochs(len(faults)) * (SAMPLES // BATCH)
    return 1.1 * sum(fault.delay for fault in faults) / steps


def calm(faults: int) -> dict[str, Any]:
    """Return the result of the undisturbed job."""
    return undisturbed(*training(faults), "--save-freq", "epoch", "--pace", "0", ranks=PODS)


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def disturbed(
    folder: Path, faults: Sequence[Fault], say: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    """Run the job under a plan of faults to its end.

    Args:
        folder: Empty.
        faults: The plan.
        say: Shows a message.

    Returns:
        The result of the job, and the files that are left over.
    """
    run = folder / "run"
    how = ["--run", str(run), *training(len(faults)), "--pace", f"{pace(faults):.3f}"]
    settings = Settings(
        name="job",
        image="none",
        script=forked(JOB, *how, *SAVING),
        checkpoint_dir="s3://bucket/run",
        completions=PODS,
        parallelism=PODS,
        grace=GRACE,
        environment={**CREDENTIALS, "HOROVOD_GLOO_TIMEOUT_SECONDS": "8"},
    )
    manifests = build_objects(settings)
    loosen(manifests)
    image = {key: environment()[key] for key in ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES")}
    image["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with ExitStack() as stack:
        volumes = stack.enter_context(disk(folder / "disk"))
        (folder / "pods").mkdir()
        job = stack.enter_context(indexed_job(folder / "pods", manifests, image, disk=volumes))
        store = Store(stack, job.switch, folder / "store.log")
        store.ask("s3.create_bucket(Bucket='bucket')['ResponseMetadata']['HTTPStatusCode']")
        chaos = Chaos(job, store, volumes, faults, say)
        try:
            follow(job, chaos, folder / "hurry", say)
        except BaseException:
            (folder / "logs").write_text(job.describe())
            raise
        listed = store.ask(
            "sorted(o['Key'] for page in s3.get_paginator('list_objects_v2')"
            ".paginate(Bucket='bucket') for o in page.get('Contents', []))"
        )
        left = [name for name in listed if is_left_over(name)]
        left += [
            str(path.relative_to(volumes))
            for pod in job.pods.values()
            for path in (volumes / pod.folder.name / "tmp").iterdir()
            if path.name != "heartbeat"
        ]
    return result(run), left


def loosen(manifests: Sequence[dict[str, Any]]) -> None:
    """Allow more failures, and set shorter timeouts, than a real job would have."""
    (job,) = (each for each in manifests if each["kind"] == "Job")
    job["spec"]["backoffLimitPerIndex"] = 10_000
    (container,) = job["spec"]["template"]["spec"]["containers"]
    join = next(n for n, word in enumerate(container["command"]) if word.startswith("--join="))
    container["command"][join + 1 : join + 1] = [
        "--attempts=10000",
        f"--step-timeout={STEP_TIMEOUT:g}",
        "--start-timeout=60",
    ]


def follow(job: IndexedJob, chaos: Chaos, hurry: Path, say: Callable[[str], None]) -> None:
    """Inject the faults until the job has ended; after the last one it may run at full speed."""
    began = newest = time.monotonic()
    seen, longest = 0, 0.0
    while job.condition is None or not all(pod.ended for pod in job.pods.values()):
        chaos.step()
        if chaos.left == 0:
            hurry.touch()
        job.step()
        time.sleep(0.05)
        now = time.monotonic()
        written = sum((pod.folder / "log").stat().st_size for pod in job.pods.values())
        if written != seen:
            seen, longest, newest = written, max(longest, now - newest), now
        assert job.condition != "Failed", job.reason
        assert now - newest < MAX_SILENCE, f"the job has written nothing for {MAX_SILENCE:g} s"
        if job.condition is not None:
            chaos.relieve()
    chaos.relieve()
    assert chaos.left == 0, f"the job ended before {chaos.left} of the faults had struck"
    seconds = time.monotonic() - began
    say(f"{chaos.struck.total()} faults in {seconds:.0f} s, {job.codes}: {dict(chaos.struck)}")
    say(f"the longest silence: {longest:.0f} s")


def is_left_over(name: str) -> bool:
    """Tell whether an object in the store is not part of a finished run."""
    parts = name.split("/")
    return "checkpoints" in parts and "attempts" not in parts and not _is_checkpoint(parts)


def _is_checkpoint(parts: Sequence[str]) -> bool:
    return parts[parts.index("checkpoints") + 1].isdecimal()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    faults = plan(options.seed, options.faults)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="distrib-chaos-") as name:
        folder = Path(name)
        expected = calm(options.faults)
        say("the undisturbed run has ended")
        got, left = disturbed(folder, faults, say)
    differ = [key for key in expected if got[key] != expected[key]]
    print(f"differs: {differ or 'nothing'}; left over: {left or 'nothing'}")
    return bool(differ or left)


if __name__ == "__main__":
    if hosts.missing() is not None:
        sys.exit(f"cannot run here: {hosts.missing()}")
    sys.exit(main())
