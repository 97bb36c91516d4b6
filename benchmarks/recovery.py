"""How long a job stands still when one of its ranks is killed, and with what.

    python benchmarks/recovery.py [--kills 3]

Two ranks train under `distrib run`; one is killed with SIGKILL, and the job starts itself again.
What passes until the first step after that is split up. What is not distrib's is measured by
itself, too: two interpreters side by side that import the same packages and do nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=3)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "train.py"
        script.write_text(SCRIPT)
        alone = statistics.median(import_alone(script) for _ in range(3))
        rows = measure(folder, script, kills)
    print(f"\nseconds from the death of a rank to the next step, medians of {kills} kills")
    medians = [statistics.median(row[part] for row in rows) for part in PARTS]
    for part, median in zip(PARTS, medians, strict=True):
        print(f"  {part:<14}{median:8.2f}")
    print(f"  {'all':<14}{sum(medians):8.2f}")
    rest = sum(medians) - alone - medians[PARTS.index("restore")]
    print(f"interpreter and imports alone, two side by side: {alone:.2f}")
    print(f"all, less those, less the restore: {rest:.2f}")


def import_alone(script: Path) -> float:
    """Return the seconds that two interpreters need for the imports."""
    began = time.perf_counter()
    command = [sys.executable, "-P", str(script), "imports"]
    quiet = {"env": environment(), "stderr": subprocess.DEVNULL}
    both = [subprocess.Popen(command, **quiet) for _ in range(2)]
    for process in both:
        process.wait()
    return time.perf_counter() - began


def measure(folder: Path, script: Path, kills: int) -> list[dict[str, float]]:
    """Kill a rank so many times, and return what passed each time, by part."""
    launcher = str(Path(sys.executable).with_name("distrib"))
    with (folder / "output").open("wb") as output:
        job = subprocess.Popen(
            [launcher, "run", "-np", "2", str(script), name_of(folder)],
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


def name_of(folder: Path) -> str:
    """Return a fresh folder for the run."""
    (folder / "marks").mkdir()
    return str(folder / "marks")


def wait_for_ranks(
    folder: Path, known: dict[int, tuple[int, Path]], job: subprocess.Popen[bytes]
) -> dict[int, tuple[int, Path]]:
    """Return pid and marks of both ranks when they have made a step that `known` ones have not."""
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
    """Return when the last of some processes has ended."""
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.002)
    return time.time()


def split(died: float, ended: float, rank: tuple[int, Path]) -> dict[str, float]:
    """Return the seconds of each part."""
    pid, path = rank
    marks = json.loads(path.read_text())
    started = start_of(pid)
    times = [died, ended, started, *marks.values()]
    spans = [after - before for before, after in itertools.pairwise(times)]
    return dict(zip(PARTS, spans, strict=True))


def start_of(pid: int) -> float:
    """Return when a process was started, by the clock of `time.time`."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def environment() -> dict[str, str]:
    """Return this environment, without GPUs and without chatter."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}


if __name__ == "__main__":
    main()
