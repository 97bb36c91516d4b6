"""Train undisturbed, train under `kill -9`, and show that both runs end with the same bits.

    python examples/demo.py --out runs/demo

All runs execute `examples/digits.py`. First, a single process is killed at random moments and
started again until it finishes. Then one of two Horovod ranks is killed, and `distrib run` restarts
the job. The tables compare each with an undisturbed run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).with_name("digits.py")
LAUNCHER = Path(sysconfig.get_path("scripts")) / "distrib"
RESUMING = re.compile(r"distrib: resuming from .*: epoch (\d+)/\d+, batch (\d+)/")
EPOCH_STARTED = re.compile(r"Epoch (\d+)/")


@dataclass(frozen=True)
class KillTime:
    """When to kill: `seconds` after the begin of `epoch`, counted from 1."""

    epoch: int
    seconds: float


@dataclass
class Run:
    """A training run and what its output shows. Rank `victim` is the one to kill."""

    folder: Path
    epochs: int
    ranks: int = 1
    victim: int = 0
    attempts: int = 0
    resumed: list[str] = field(default_factory=list)
    accuracy: str = "?"
    weights: str = "?"

    @property
    def command(self) -> list[str]:
        """The command that starts the run, and resumes it."""
        script = [str(SCRIPT), "--run", str(self.folder), f"--epochs={self.epochs}"]
        if self.ranks == 1:
            return [sys.executable, *script]
        return [str(LAUNCHER), "run", "-np", str(self.ranks), *script]

    def parse(self, line: str) -> None:
        """Record the results that a line of output holds, and print messages of distrib."""
        if match := RESUMING.search(line):
            self.resumed.append(f"epoch {match[1]} batch {match[2]}")
            print(f"    resumed at {self.resumed[-1]}", flush=True)
        elif line.startswith("distrib: "):
            print(f"    {line.rstrip()}", flush=True)
            self.attempts += "Starting again" in line
        elif line.startswith("validation accuracy: "):
            self.accuracy = line.split()[-1]
        elif line.startswith("weights sha256: "):
            self.weights = line.split()[-1]


def rank_process(rank: int, argument: str) -> int:
    """Return the process id of a rank of the job with `argument` on its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # The process has ended, or belongs to another user.
            continue
        if argument.encode() in command and f"HOROVOD_RANK={rank}".encode() in environment:
            return int(folder.name)
    raise ProcessLookupError(f"rank {rank} of the job with argument {argument!r} is not running")


def attempt(run: Run, kill_time: KillTime | None = None) -> bool:
    """Start the command once, and kill a process at `kill_time`.

    Returns:
        Whether the run has finished.
    """
    run.attempts += 1
    process = subprocess.Popen(
        run.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None

    def kill() -> None:
        pid = process.pid if run.ranks == 1 else rank_process(run.victim, str(run.folder))
        print(f"    kill -9 {pid}", flush=True)
        os.kill(pid, signal.SIGKILL)

    timer: threading.Timer | None = None
    with (run.folder.parent / f"{run.folder.name}.log").open("a") as log:
        for line in process.stdout:
            log.write(line)
            run.parse(line)
            started = EPOCH_STARTED.match(line)
            if started and kill_time and not timer and int(started[1]) >= kill_time.epoch:
                timer = threading.Timer(kill_time.seconds, kill)
                timer.start()
    code = process.wait()
    if timer is not None:
        timer.cancel()
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"{SCRIPT.name} failed with exit code {code}; see {log.name}")
    return code == 0


def train_with_kills(run: Run, kill_times: list[KillTime]) -> None:
    """Train until the run finishes, with a kill at each of the given times."""
    for kill_time in kill_times:
        if attempt(run, kill_time):
            return
    attempt(run)


def compare(undisturbed: Run, killed: Run) -> bool:
    """Print both runs side by side, and return whether weights and logs are equal."""
    print(f"\n{'':14}{'undisturbed':>24}{'killed':>24}")
    for title, name in (("attempts", "attempts"), ("val accuracy", "accuracy")):
        print(f"{title:14}{getattr(undisturbed, name):>24}{getattr(killed, name):>24}")
    print(f"{'weights':14}{undisturbed.weights[:16]:>24}{killed.weights[:16]:>24}")
    for number, position in enumerate(killed.resumed, 2):
        print(f"  attempt {number} resumed at {position}")
    weights_equal = undisturbed.weights == killed.weights
    csv, killed_csv = ((run.folder / "log.csv").read_bytes() for run in (undisturbed, killed))
    logs_equal = csv == killed_csv
    print(f"\nweights equal bit for bit: {'yes' if weights_equal else 'NO'}")
    print(f"log.csv equal byte for byte: {'yes' if logs_equal else 'NO'}\n")
    return weights_equal and logs_equal


def one_process(out: Path, epochs: int, kill_times: list[KillTime]) -> bool:
    """Compare runs of one process, and print where their output is."""
    undisturbed, killed = Run(out / "undisturbed", epochs), Run(out / "killed", epochs)
    print("1. training undisturbed ...", flush=True)
    attempt(undisturbed)
    print(f"2. training under kill -9, {len(kill_times)} times ...", flush=True)
    train_with_kills(killed, kill_times)
    equal = compare(undisturbed, killed)
    steps = (p.name for p in (killed.folder / "checkpoints").iterdir() if p.name.isdigit())
    print(f"plot:       {killed.folder / 'plots' / 'loss.png'}")
    print(f"CSV:        {killed.folder / 'log.csv'}")
    print(f"checkpoint: {killed.folder / 'checkpoints' / max(steps, key=int)}\n")
    return equal


def two_ranks(out: Path, epochs: int, kill_time: KillTime) -> bool:
    """Compare an undisturbed run of two ranks with a run whose rank 1 is killed."""
    if importlib.util.find_spec("horovod") is None:
        print("3. two ranks: skipped, Horovod is not installed; run `distrib horovod build`")
        return True
    undisturbed = Run(out / "ranks-undisturbed", epochs, ranks=2)
    killed = Run(out / "ranks-killed", epochs, ranks=2, victim=1)
    print("3. training on two ranks (distrib run -np 2), undisturbed ...", flush=True)
    attempt(undisturbed)
    print("4. training on two ranks, kill -9 of rank 1 ...", flush=True)
    attempt(killed, kill_time)
    return compare(undisturbed, killed)


def random_kill_times(rng: random.Random, kills: int, last_epoch: int) -> list[KillTime]:
    """Return random times in different epochs from 2 to `last_epoch`, in order."""
    epochs = sorted(rng.sample(range(2, last_epoch + 1), kills))
    return [KillTime(epoch, rng.uniform(0.0, 0.5)) for epoch in epochs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="output folder [runs/demo]"
    )
    parser.add_argument("--kills", type=int, default=3, help="kill the single process N times [3]")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of kill times")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)

    started = time.monotonic()
    print(f"kill times are random, with seed {args.seed}")
    rng = random.Random(args.seed)
    equal = [
        one_process(args.out, 25, random_kill_times(rng, args.kills, 20)),
        two_ranks(args.out, 10, *random_kill_times(rng, 1, 8)),
    ]
    print(f"({time.monotonic() - started:.0f} s)")
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
