"""Show what distrib promises: train once undisturbed, once under `kill -9`, and compare.

    python examples/demo.py --out runs/demo

Both runs execute `examples/digits.py`. The second one is killed at random moments and started
again until it finishes; the table at the end shows that nothing came of it.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).with_name("digits.py")
RESUMING = re.compile(r"distrib: resuming from .*: epoch (\d+)/\d+, batch (\d+)/")


@dataclass
class Run:
    """What one run left behind."""

    folder: Path
    attempts: int = 0
    resumed: list[str] = field(default_factory=list)
    accuracy: str = "?"
    weights: str = "?"


def attempt(run: Run, kill_after: float | None) -> bool:
    """Start the script once; kill it so many seconds after it began to train. True if it ended."""
    run.attempts += 1
    process = subprocess.Popen(
        [sys.executable, "-u", str(SCRIPT), "--run", str(run.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    timer: threading.Timer | None = None
    with (run.folder.parent / f"{run.folder.name}.log").open("a") as log:
        for line in process.stdout:
            log.write(line)
            if match := RESUMING.search(line):
                run.resumed.append(f"epoch {match[1]} batch {match[2]}")
                print(f"    resumed at {run.resumed[-1]}", flush=True)
            elif line.startswith("validation accuracy: "):
                run.accuracy = line.split()[-1]
            elif line.startswith("weights sha256: "):
                run.weights = line.split()[-1]
            elif line.startswith("Epoch ") and kill_after is not None and timer is None:
                timer = threading.Timer(kill_after, process.send_signal, (signal.SIGKILL,))
                timer.start()
    code = process.wait()
    if timer is not None:
        timer.cancel()
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"{SCRIPT.name} failed with exit code {code}; see {log.name}")
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the kills")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)

    started = time.monotonic()
    print("1. training undisturbed ...", flush=True)
    calm = Run(args.out / "undisturbed")
    attempt(calm, None)

    print(f"2. training under kill -9, {args.kills} times (seed {args.seed}) ...", flush=True)
    chance = random.Random(args.seed)
    killed = Run(args.out / "killed")
    for _ in range(args.kills):
        delay = chance.uniform(2.0, 9.0)
        print(f"    kill -9 after {delay:.1f} s of training", flush=True)
        if attempt(killed, delay):
            break
    else:
        attempt(killed, None)

    print(f"\n{'':14}{'undisturbed':>24}{'killed':>24}")
    for title, name in (("attempts", "attempts"), ("val accuracy", "accuracy")):
        print(f"{title:14}{getattr(calm, name):>24}{getattr(killed, name):>24}")
    print(f"{'weights':14}{calm.weights[:16]:>24}{killed.weights[:16]:>24}")
    for number, place in enumerate(killed.resumed, 2):
        print(f"  attempt {number} resumed at {place}")

    logs_equal = (calm.folder / "log.csv").read_bytes() == (killed.folder / "log.csv").read_bytes()
    equal = calm.weights == killed.weights and logs_equal
    print(f"\nweights equal bit for bit: {'yes' if calm.weights == killed.weights else 'NO'}")
    print(f"log.csv equal byte for byte: {'yes' if logs_equal else 'NO'}")
    steps = sorted(
        int(p.name) for p in (killed.folder / "checkpoints").iterdir() if p.name.isdigit()
    )
    print(f"\nplot:       {killed.folder / 'plots' / 'loss.png'}")
    print(f"CSV:        {killed.folder / 'log.csv'}")
    print(f"checkpoint: {killed.folder / 'checkpoints' / str(steps[-1])}")
    print(f"({time.monotonic() - started:.0f} s)")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
