"""Time that a job loses when one of its ranks is killed, by part.

    python benchmarks/recovery.py [--kills 3]

Two ranks train under `distrib run`. SIGKILL ends one of them, and `distrib run` restarts the job.
The time from the kill to the next step is split into parts, without spares and with them. What
spares save is also measured alone: two interpreters, side by side, that only import the same
packages.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common.measuring import LAUNCHER, column_medians, seconds_of

SCRIPT = """
import json, os, sys, time
marks = {"interpreter": time.time()}
import keras, numpy, tensorflow, distrib, distrib.callbacks, horovod.tensorflow
marks["imports"] = time.time()
if sys.argv[1:] == ["imports"]:
    sys.exit()
folder = sys.argv[1]
cluster = distrib.init()
marks["init"] = time.time()
with cluster.scope():
    model = keras.Sequential(
        [keras.Input((256,)), *map(keras.layers.Dense, (2048, 2048, 1))]
    )
    model.compile(cluster.optimizer("adam"), "mse")

class Mark(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        marks.setdefault("restore", time.time())

    def on_train_batch_end(self, batch, logs=None):
        if "first step" not in marks:
            marks["first step"] = time.time()
            with open(f"{folder}/{cluster.rank}-{os.getpid()}.json.new", "w") as file:
                json.dump(marks, file)
            os.rename(file.name, file.name.removesuffix(".new"))
        time.sleep(0.05)

x = numpy.ones((8192, 256), "float32")
model.fit(
    cluster.dataset((x, x[:, :1]), 16),
    epochs=100,
    verbose=0,
    callbacks=[distrib.callbacks.BackupAndRestore(f"{folder}/run", save_freq=20), Mark()],
)
"""
PARTS = ("ranks end", "script begins", "imports", "init", "restore", "first step")
SETTLED_SECONDS = 5.0
SPARES_SECONDS = 300.0
RESTING_NANOSECONDS = 50e6  # In `SETTLED_SECONDS`: spares look at the free memory.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=3, help="kill a rank N times [3]")
    kills = parser.parse_args().kills
    medians = []
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "train.py"
        script.write_text(SCRIPT)
        imports = median(seconds_of(lambda: import_twice(script)) for _ in range(3))
        for option in ("--no-spares", "--spares"):
            folder = Path(name) / option
            folder.mkdir()
            rows = measure(folder, script, kills, option)
            medians.append(column_medians([row[part] for part in PARTS] for row in rows))
    print(f"\nseconds from the death of a rank to the next step, medians of {kills} kills")
    print(f"  {'':<14}{'without':>8}{'with spares':>13}")
    table = [*zip(PARTS, *medians, strict=True), ("all", *map(sum, medians))]
    for part, without, with_spares in table:
        print(f"  {part:<14}{without:8.2f}{with_spares:13.2f}")
    rest = sum(medians[1]) - medians[1][PARTS.index("restore")]
    print(f"interpreter and imports alone, two side by side: {imports:.2f}")
    print(f"all with spares, less the restore: {rest:.2f}")


def import_twice(script: Path) -> None:
    """Run the imports in two interpreters side by side."""
    command = [sys.executable, "-P", str(script), "imports"]
    quiet = {"env": environment(), "stderr": subprocess.DEVNULL}
    both = [subprocess.Popen(command, **quiet) for _ in range(2)]
    for process in both:
        process.wait()


def measure(folder: Path, script: Path, kills: int, option: str) -> list[dict[str, float]]:
    """Kill a rank `kills` times, and return the seconds of each part for each kill."""
    marks = folder / "marks"
    marks.mkdir()
    with (folder / "output").open("wb") as output:
        job = subprocess.Popen(
            [str(LAUNCHER), "run", "-np", "2", option, str(script), str(marks)],
            env=environment(),
            stdout=output,
            stderr=output,
        )
    rows = []
    try:
        known = wait_for_ranks(folder, {}, job)
        for _ in range(kills):
            time.sleep(SETTLED_SECONDS)
            if option == "--spares":
                wait_for_spares(folder, job)
            died = time.time()
            os.kill(known[1][0], signal.SIGKILL)
            ended = wait_for_ends([pid for pid, _ in known.values()])
            known = wait_for_ranks(folder, known, job)
            rows.append(split(died, ended, known[0]))
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait()
    return rows


def wait_for_ranks(
    folder: Path, known: dict[int, tuple[int, Path]], job: subprocess.Popen[bytes]
) -> dict[int, tuple[int, Path]]:
    """Wait for the first step of two ranks not in `known`, and return pid and marks by rank."""
    old = {path for _, path in known.values()}
    while True:
        if job.poll() is not None:
            sys.exit((folder / "output").read_text()[-4000:])
        new = {path for path in (folder / "marks").glob("*.json") if path not in old}
        found = {}
        for path in new:
            rank, pid = map(int, path.stem.split("-"))
            if Path(f"/proc/{pid}").exists():
                found[rank] = (pid, path)
        if len(found) == 2:
            return found
        time.sleep(0.01)


def wait_for_spares(folder: Path, job: subprocess.Popen[bytes]) -> None:
    """Wait until two spares have imported everything and rest."""
    marks, before = bytes(folder / "marks"), dict[Path, int]()
    deadline = time.monotonic() + SPARES_SECONDS
    while True:
        if job.poll() is not None:
            sys.exit((folder / "output").read_text()[-4000:])
        if time.monotonic() > deadline:
            sys.exit(f"no two spares have started within {SPARES_SECONDS:.0f} s: is memory short?")
        now = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                if marks in command and (process / "oom_score_adj").read_text() == "1000\n":
                    now[process] = int((process / "schedstat").read_text().split()[0])
            except OSError:  # It has just ended.
                continue
        resting = [each for each in now if now[each] - before.get(each, 0) < RESTING_NANOSECONDS]
        if len(resting) == 2:
            return
        before = now
        time.sleep(SETTLED_SECONDS)


def wait_for_ends(pids: list[int]) -> float:
    """Wait until all processes have ended, and return the time."""
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.002)
    return time.time()


def split(died: float, ended: float, rank: tuple[int, Path]) -> dict[str, float]:
    """Return the seconds of each part; `died` and `ended` are times of `time.time`."""
    times = [died, ended, *json.loads(rank[1].read_text()).values()]
    spans = [after - before for before, after in itertools.pairwise(times)]
    return dict(zip(PARTS, spans, strict=True))


def environment() -> dict[str, str]:
    """Return this process's environment, with GPUs and TensorFlow's log messages disabled."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}


if __name__ == "__main__":
    main()
