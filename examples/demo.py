"""Show what distrib promises: train once undisturbed, once under `kill -9`, and compare.

    python examples/demo.py --out runs/demo

All runs execute `examples/digits.py`: first one process that is killed at random moments and
started again until it finishes, then two ranks, joined by Horovod, of which one is killed, and
which start themselves again. The tables show that nothing came of it.
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
BEGINNING = re.compile(r"Epoch (\d+)/")


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after an epoch began, whose number counts from 1."""

    epoch: int
    seconds: float


@dataclass
class Run:
    """One run: what it consists of, and what it left behind."""

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
        """What starts it, and starts it again."""
        script = [str(SCRIPT), "--run", str(self.folder), f"--epochs={self.epochs}"]
        if self.ranks == 1:
            return [sys.executable, *script]
        return [str(LAUNCHER), "run", "-np", str(self.ranks), *script]

    def note(self, line: str) -> None:
        """Take from a line of the output what counts, and show what people want to see."""
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
    """Return the process number of a rank of the job that has this argument."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # Ended by now, or somebody else's.
            continue
        if argument.encode() in command and f"HOROVOD_RANK={rank}".encode() in environment:
            return int(folder.name)
    raise ProcessLookupError(f"rank {rank} of the job with argument {argument!r} is not running")


def attempt(run: Run, moment: Moment | None = None) -> bool:
    """Start the command once; kill a process at a moment.

    Returns:
        Whether the run has ended.
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
        number = process.pid if run.ranks == 1 else rank_process(run.victim, str(run.folder))
        print(f"    kill -9 {number}", flush=True)
        os.kill(number, signal.SIGKILL)

    timer: threading.Timer | None = None
    with (run.folder.parent / f"{run.folder.name}.log").open("a") as log:
        for line in process.stdout:
            log.write(line)
            run.note(line)
            begun = BEGINNING.match(line)
            if begun and moment and not timer and int(begun[1]) >= moment.epoch:
                timer = threading.Timer(moment.seconds, kill)
                timer.start()
    code = process.wait()
    if timer is not None:
        timer.cancel()
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"{SCRIPT.name} failed with exit code {code}; see {log.name}")
    return code == 0


def under_fire(run: Run, moments: list[Moment]) -> None:
    """Bring a run to its end in spite of a kill at each of these moments."""
    for moment in moments:
        if attempt(run, moment):
            return
    attempt(run)


def compare(calm: Run, killed: Run) -> bool:
    """Print both runs side by side, and return whether they ended the same."""
    print(f"\n{'':14}{'undisturbed':>24}{'killed':>24}")
    for title, name in (("attempts", "attempts"), ("val accuracy", "accuracy")):
        print(f"{title:14}{getattr(calm, name):>24}{getattr(killed, name):>24}")
    print(f"{'weights':14}{calm.weights[:16]:>24}{killed.weights[:16]:>24}")
    for number, place in enumerate(killed.resumed, 2):
        print(f"  attempt {number} resumed at {place}")
    weights_equal = calm.weights == killed.weights
    logs_equal = (calm.folder / "log.csv").read_bytes() == (killed.folder / "log.csv").read_bytes()
    print(f"\nweights equal bit for bit: {'yes' if weights_equal else 'NO'}")
    print(f"log.csv equal byte for byte: {'yes' if logs_equal else 'NO'}\n")
    return weights_equal and logs_equal


def one_process(out: Path, epochs: int, moments: list[Moment]) -> bool:
    """Compare runs of one process, and show what such a run leaves."""
    calm, killed = Run(out / "undisturbed", epochs), Run(out / "killed", epochs)
    print("1. training undisturbed ...", flush=True)
    attempt(calm)
    print(f"2. training under kill -9, {len(moments)} times ...", flush=True)
    under_fire(killed, moments)
    equal = compare(calm, killed)
    steps = (p.name for p in (killed.folder / "checkpoints").iterdir() if p.name.isdigit())
    print(f"plot:       {killed.folder / 'plots' / 'loss.png'}")
    print(f"CSV:        {killed.folder / 'log.csv'}")
    print(f"checkpoint: {killed.folder / 'checkpoints' / max(steps, key=int)}\n")
    return equal


def two_ranks(out: Path, epochs: int, moment: Moment) -> bool:
    """Compare runs of two ranks, one of which is killed."""
    if importlib.util.find_spec("horovod") is None:
        print("3. two ranks: skipped, Horovod is not installed; run `distrib horovod build`")
        return True
    calm = Run(out / "ranks-undisturbed", epochs, ranks=2)
    killed = Run(out / "ranks-killed", epochs, ranks=2, victim=1)
    print("3. training on two ranks (distrib run -np 2), undisturbed ...", flush=True)
    attempt(calm)
    print("4. training on two ranks, kill -9 of rank 1 ...", flush=True)
    attempt(killed, moment)
    return compare(calm, killed)


def draw(chance: random.Random, kills: int, last_epoch: int) -> list[Moment]:
    """Return random moments, each in a later epoch, the last one in `last_epoch` at the latest."""
    epochs = sorted(chance.sample(range(2, last_epoch + 1), kills))
    return [Moment(epoch, chance.uniform(0.0, 0.5)) for epoch in epochs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--kills", type=int, default=3, help="of the run in one process")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the kills")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)

    started = time.monotonic()
    print(f"the moments of the kills are random, of seed {args.seed}")
    chance = random.Random(args.seed)
    equal = [
        one_process(args.out, 25, draw(chance, args.kills, 20)),
        two_ranks(args.out, 10, *draw(chance, 1, 8)),
    ]
    print(f"({time.monotonic() - started:.0f} s)")
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
