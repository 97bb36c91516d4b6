"""Time that a job loses when one of its ranks is killed, by part.

    python benchmarks/recovery.py [--kills 3]

Two ranks train under `distrib run`. SIGKILL ends one of them, and `distrib run` restarts the job.
The time from the kill to the next step is split into parts. The part that distrib cannot change is
also measured alone: two interpreters, side by side, that only import the same packages.
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
PARTS = ("ranks end", "hosts, start", "interpreter", "imports", "init", "restore", "first step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=3, help="kill a rank N times [3]")
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "train.py"
        script.write_text(SCRIPT)
        imports = median(seconds_of(lambda: import_twice(script)) for _ in range(3))
        rows = measure(folder, script, kills)
    print(f"\nseconds from the death of a rank to the next step, medians of {kills} kills")
    medians = column_medians([row[part] for part in PARTS] for row in rows)
    for part, seconds in zip(PARTS, medians, strict=True):
        print(f"  {part:<14}{seconds:8.2f}")
    print(f"  {'all':<14}{sum(medians):8.2f}")
    rest = sum(medians) - imports - medians[PARTS.index("restore")]
    print(f"interpreter and imports alone, two side by side: {imports:.2f}")
    print(f"all, less those, less the restore: {rest:.2f}")


def import_twice(script: Path) -> None:
    """Run the imports in two interpreters side by side."""
    command = [sys.executable, "-P", str(script), "imports"]
    quiet = {"env": environment(), "stderr": subprocess.DEVNULL}
    both = [subprocess.Popen(command, **quiet) for _ in range(2)]
    for process in both:
        process.wait()


def measure(folder: Path, script: Path, kills: int) -> list[dict[str, float]]:
    """Kill a rank `kills` times, and return the seconds of each part for each kill."""
    marks = folder / "marks"
    marks.mkdir()
    with (folder / "output").open("wb") as output:
        job = subprocess.Popen(
            [str(LAUNCHER), "run", "-np", "2", str(script), str(marks)],
            env=environment(),
            stdout=output,
            stderr=output,
        )
    rows = []
    try:
        known = wait_for_ranks(folder, {}, job)
        for _ in range(kills):
            time.sleep(5)
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


def wait_for_ends(pids: list[int]) -> float:
    """Wait until all processes have ended, and return the time."""
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.002)
    return time.time()


def split(died: float, ended: float, rank: tuple[int, Path]) -> dict[str, float]:
    """Return the seconds of each part; `died` and `ended` are times of `time.time`."""
    pid, path = rank
    marks = json.loads(path.read_text())
    started = start_time(pid)
    times = [died, ended, started, *marks.values()]
    spans = [after - before for before, after in itertools.pairwise(times)]
    return dict(zip(PARTS, spans, strict=True))


def start_time(pid: int) -> float:
    """Return the start time of a process, by the clock of `time.time`."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def environment() -> dict[str, str]:
    """Return this process's environment, with GPUs and TensorFlow's log messages disabled."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}


if __name__ == "__main__":
    main()
