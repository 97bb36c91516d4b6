"""What a checkpoint costs, side by side with Keras's, TensorFlow's and Orbax's own.

    python benchmarks/checkpoint.py                           # 604 MB of state
    python benchmarks/checkpoint.py --small                   # a model of a few bytes
    python benchmarks/checkpoint.py --store s3://bucket/bench # to a store and back

Every contender trains the same model on the same data in a fresh process, in turn, several times.
The floors are measured in between: copying the state in memory, and `dd` of as many bytes.

- pause: by how much the saving step kept the loop from the next one: the time in the callback.
- next step: by how much the next one then took longer than a step before the first save, because
  the state is copied on write, or the disk or a core is busy.
- wall: by how much the same steps and the wait for the last save took longer than without saves,
  for each save. It has the work of background threads, which take cores from training.
- commit: from the end of the step until the checkpoint stands under its final name. distrib and
  Orbax flush it to the disk before; Keras and TensorFlow leave that to the kernel.
- memory: by how much the peak of the process is above that of a run without saves.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import fsspec
import google_crc32c
import keras
import numpy as np
import tensorflow as tf

import distrib
from distrib.callbacks import BackupAndRestore
from distrib.checkpoint import transfer
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.manifest import FileEntry
from distrib.checkpoint.orbax_format import DataFile
from distrib.checkpoint.saver import Saver
from distrib.errors import EXIT_CONFIGURATION
from distrib.state.run_checkpoint import RunCheckpoint
from distrib.storage.locate import locate
from distrib.storage.write_check import check_writable


@dataclass(frozen=True)
class Load:
    """A model to train: `units` of its layers, steps between saves, and steps to warm up."""

    inputs: int
    units: tuple[int, ...]
    batch: int
    every: int
    saves: int
    warm: int

    @property
    def steps(self) -> int:
        return self.every * (self.saves + 1) - 1

    def model(self) -> Any:
        layers = [keras.layers.Dense(units, activation="relu") for units in self.units]
        model = keras.Sequential([keras.Input((self.inputs,)), *layers])
        model.compile("adam", "mse")
        return model

    def data(self, steps: int) -> Any:
        rng = np.random.default_rng(0)
        count = steps * self.batch
        x, y = rng.random((count, self.inputs)), rng.random((count, self.units[-1]))
        source = x.astype(np.float32), y.astype(np.float32)
        return distrib.init("local").dataset(source, self.batch)


Job = Callable[[], Any]
LARGE = Load(inputs=2048, units=(2048,) * 12, batch=32, every=8, saves=3, warm=2)
SMALL = Load(inputs=4, units=(1,), batch=8, every=200, saves=25, warm=100)
PATIENCE = 120


# The contenders


@dataclass(frozen=True)
class Saving:
    """How one contender saves: its callbacks, how to wait for the last save, and the path, in its
    folder, that stands when the save of a step is done (none: when its call ends)."""

    callbacks: Sequence[keras.callbacks.Callback] = ()
    wait: Callable[[], Any] | None = None
    committed: str = ""


class Every(keras.callbacks.Callback):
    """Calls `save(step)` every so many steps."""

    def __init__(self, steps: int, save: Callable[[int], Any]) -> None:
        super().__init__()
        self._steps, self._save = steps, save

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (batch + 1) % self._steps == 0:
            self._save(batch + 1)


def variables(model: Any) -> list[Any]:
    return [*model.weights, *model.optimizer.variables]


def distribs(folder: Path, model: Any, load: Load) -> Saving:
    backup = BackupAndRestore(folder, load.every, keep_last=1)
    return Saving([backup], committed="checkpoints/{}/manifest.json")


def distribs_later(folder: Path, model: Any, load: Load) -> Saving:
    """The same, but nothing is written while the next step runs.

    What that step is still slower by is due to the copy; the rest of what it is slower by without
    this is the writer's share of the cores.
    """
    write = Saver._save

    def later(saver: Saver, *work: Any) -> None:
        time.sleep(1.0)
        write(saver, *work)

    Saver._save = later  # type: ignore[method-assign]
    return distribs(folder, model, load)


def keras_own(kind: str, name: str, folder: Path, model: Any, load: Load) -> Saving:
    return Saving([getattr(keras.callbacks, kind)(str(folder / name), save_freq=load.every)])


def keras_orbax(folder: Path, model: Any, load: Load) -> Saving:
    if not hasattr(keras.callbacks, "OrbaxCheckpoint"):
        print(f"Keras {keras.__version__} has no OrbaxCheckpoint.", file=sys.stderr)
        raise SystemExit(EXIT_CONFIGURATION)
    callback = keras.callbacks.OrbaxCheckpoint(str(folder), save_freq=load.every)
    return Saving([callback], callback.wait_until_finished, "{}")


def tf_manager(asynchronous: bool, folder: Path, model: Any, load: Load) -> Saving:
    # Given the model itself, Keras 3.15 fails at the second asynchronous save.
    model.optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(variables=[v.value for v in variables(model)])
    manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=1)
    options = tf.train.CheckpointOptions(enable_async=asynchronous)

    def save(step: int) -> None:
        manager.save(checkpoint_number=step, options=options)

    return Saving([Every(load.every, save)], checkpoint.sync, "ckpt-{}.index")


def orbax_manager(folder: Path, model: Any, load: Load) -> Saving:
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=1))

    def save(step: int) -> None:
        tree = {str(number): np.array(v) for number, v in enumerate(variables(model))}
        manager.save(step, args=ocp.args.StandardSave(tree))

    return Saving([Every(load.every, save)], manager.wait_until_finished, "{}")


TRANSFER, RUN = "distrib, the files alone", "distrib, a run's save and start"
NOTHING, DISTRIB = "no saving", "distrib BackupAndRestore"
LATER = "the same, written later"
CONTENDERS: dict[str, Callable[[Path, Any, Load], Saving]] = {
    NOTHING: lambda folder, model, load: Saving(),
    DISTRIB: distribs,
    LATER: distribs_later,
    "Keras BackupAndRestore": partial(keras_own, "BackupAndRestore", "backup"),
    "Keras ModelCheckpoint": partial(keras_own, "ModelCheckpoint", "model.keras"),
    "Keras OrbaxCheckpoint": keras_orbax,
    "tf CheckpointManager": partial(tf_manager, False),
    "tf CheckpointManager, async": partial(tf_manager, True),
    "orbax CheckpointManager": orbax_manager,
}


# What runs in the fresh processes


class Stopwatch(keras.callbacks.Callback):
    """Stands first, so what the others do for a step lies between its end and the next begin."""

    def __init__(self, load: Load, saving: Saving, folder: Path) -> None:
        super().__init__()
        self._load, self._saving, self._folder = load, saving, folder
        self._begun: list[float] = []
        self._ended: list[float] = []
        self._captured: list[int] = []

    def get_state(self) -> dict[str, Any]:
        """Note the step: distrib asks for this when it saves, and it alone may do that late."""
        self._captured.append(len(self._ended))
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("Nothing is resumed here.")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._begun.append(time.time())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        np.asarray(logs["loss"])  # A GPU may still be at it.
        self._ended.append(time.time())
        if len(self._ended) == self._load.steps:
            self.results = self._evaluate()

    def _evaluate(self) -> dict[str, Any]:
        load, ended = self._load, self._ended
        # Of distrib without that before the first step.
        saved = self._captured[1:] or [load.every * (number + 1) for number in range(load.saves)]
        committed = self._wait(saved[-1])
        wall = time.time() - ended[load.warm - 1]
        peak = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        pauses = np.subtract(self._begun[1:], ended[:-1])
        steps = np.subtract(ended, self._begun)
        plain = slice(load.warm, load.every - 1)
        pause, step = np.median(pauses[plain]), np.median(steps[plain])
        return {
            "step": step,
            "saves": len(saved),
            "skipped": load.saves - len(saved),
            "pause": [pauses[at - 1] - pause for at in saved],
            "next step": [steps[at] - step for at in saved],
            "commit": committed - ended[saved[-1] - 1],
            "wall": wall,
            "peak": int(peak[0]) * 1024,
        }

    def _wait(self, step: int) -> float:
        """Wait until the save of `step`, the last one, is done, and return when that was."""
        if self._saving.wait is not None:
            self._saving.wait()
        if not self._saving.committed:
            return self._begun[step]
        path = self._folder / self._saving.committed.format(step)
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} was not there after {PATIENCE} s.")
            time.sleep(0.002)
        return path.stat().st_ctime


def train(load: Load, case: str, folder: str) -> dict[str, Any]:
    model = load.model()
    path = Path(folder)
    path.mkdir()
    saving = CONTENDERS[case](path, model, load)
    watch = Stopwatch(load, saving, path)
    model.fit(load.data(load.steps), verbose=0, callbacks=[watch, *saving.callbacks])
    arrays = [np.asarray(variable) for variable in variables(model)]
    targets = [np.ones_like(array) for array in arrays]

    def memcpy() -> None:
        for target, array in zip(targets, arrays, strict=True):
            np.copyto(target, array)

    size = sum(array.nbytes for array in arrays)
    return {**watch.results, "state": size, "memcpy": median(seconds_of(memcpy) for _ in range(7))}


def restore_distrib(directory: str) -> Any:
    """Load the newest checkpoint of a run into memory, verified."""
    return CheckpointDirectory(locate(directory, "directory")).load_newest(RunCheckpoint.load)


def restore_plain(directory: str) -> Any:
    """Read the same files and checksum them, which no restore that verifies can do without."""
    contents = [path.read_bytes() for path in newest(directory)]
    return contents, [google_crc32c.value(content) for content in contents]


def newest(directory: str) -> list[Path]:
    """Return the files of the newest checkpoint of a run on the local disk."""
    folders = Path(directory, "checkpoints").glob("*[0-9]")
    folder = max(folders, key=lambda path: int(path.name))
    return [path for path in folder.rglob("*") if path.is_file()]


def restore(directory: str, who: str = "distrib", cache: str = "") -> float:
    """Seconds of a restore, with the files in the page cache ("warm") or hardly ("cold")."""
    import orbax.checkpoint  # noqa: F401 - which every training has loaded, like the store's library

    check_writable(locate(directory, "directory"), "directory")  # As every start does.
    for path in newest(directory) if cache else ():
        with path.open("rb") as file:
            if cache == "warm":
                file.read()
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    work = restore_distrib if who == "distrib" else restore_plain
    gc.collect()  # What the imports have left takes longer to look through than all of this.
    return seconds_of(lambda: work(directory))


def save_once(url: str) -> float:
    """Seconds of the last save of a run: it is waited for, and no step runs beside it."""
    times: list[float] = []
    last = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: times.append(time.perf_counter()),
        on_train_end=lambda logs: times.append(time.perf_counter()),
    )
    backup = BackupAndRestore(url, save_freq=1000)
    LARGE.model().fit(LARGE.data(2), verbose=0, callbacks=[last, backup])
    return times[1] - times[0]


JOBS: dict[str, Callable[..., Any]] = {
    "train": partial(train, LARGE),
    "train small": partial(train, SMALL),
    "restore": restore,
    "save once": save_once,
}


def in_process(job: str, *arguments: str) -> Any:
    """Run one of `JOBS` in a fresh process; `None` if the contender refuses to be set up."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        command = [sys.executable, __file__, "--job", report.name, job, *arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode == EXIT_CONFIGURATION:
            print(f"left out: {arguments[0]}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            return None
        if done.returncode:
            raise SystemExit(f"{done.stderr}\n{job} {arguments} ended with {done.returncode}")
        return json.load(report)


# The tables


def seconds_of(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def dd(folder: str, size: int) -> None:
    """Write plainly and durably."""
    command = ["dd", "if=/dev/zero", f"of={folder}/zeros", "bs=4M", "conv=fsync", "status=none"]
    subprocess.run([*command, "iflag=count_bytes", f"count={size}"], check=True)


def rounds(names: Iterable[str], job: str, count: int) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield name, results and folder of all in turn; `wall` of a save and `peak` are extra."""
    for _ in range(count):
        for name in names:
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                os.sync()
                if (result := in_process(job, name, f"{folder}/run")) is None:
                    continue
                if name == NOTHING:
                    plain = {key: result[key] for key in ("wall", "peak")}
                extra = {key: result[key] - value for key, value in plain.items()}
                extra["wall"] /= result["saves"]
                if result["skipped"]:
                    print(f"{name} skipped {result['skipped']} of its saves", flush=True)
                yield name, {**result, **extra}, folder


def compare_large(count: int) -> Iterator[str]:
    results: dict[str, list[dict[str, Any]]] = {}
    restores: dict[str, list[float]] = {}
    written = []
    for name, result, folder in rounds(CONTENDERS, "train", count):
        results.setdefault(name, []).append(result)
        written.append(seconds_of(partial(dd, folder, result["state"])))
        for cache in ("cold", "warm") if name == DISTRIB else ():
            for who in ("distrib", "plain"):
                seconds = in_process("restore", f"{folder}/run", who, cache)
                restores.setdefault(who + cache, []).append(seconds)
    everything = [result for some in results.values() for result in some]
    state, floor = everything[0]["state"], median(written)
    step, memcpy = (median(r[key] for r in everything) * 1e3 for key in ("step", "memcpy"))
    yield f"{state / 1e6:.0f} MB of state, medians of {count} rounds: a step takes {step:.0f} ms,"
    yield f"a copy in memory {memcpy:.0f} ms, dd with fsync {floor:.2f} s"
    yield f"\n{'':28}{'pause':>15}{'next step':>15}{'wall':>9}{'commit':>14}{'memory':>16}"
    units = f"{'x copy':>8}{'ms':>7}" * 2
    yield f"{'':28}{units}{'ms/save':>9}{'x dd':>7}{'s':>7}{'x state':>8}{'MB':>8}"
    for name, some in results.items():
        blocked = ""
        for part in ("pause", "next step"):
            copies = median(value / r["memcpy"] for r in some for value in r[part])
            blocked += f"{copies:8.2f}{median(v for r in some for v in r[part]) * 1e3:7.0f}"
        wall, peak, commit = (median(r[key] for r in some) for key in ("wall", "peak", "commit"))
        yield (
            f"{name:28}{blocked}{wall * 1e3:9.0f}"
            f"{commit / floor:7.2f}{commit:7.2f}{peak / state:8.2f}{peak / 1e6:8.0f}"
        )
    yield f"\n{'restore':28}{'x plain':>9}{'s':>9}{'plain read and CRC32C, s':>28}"
    for cache in ("cold", "warm"):
        ours, plain = median(restores["distrib" + cache]), median(restores["plain" + cache])
        yield f"{cache + ' cache':28}{ours / plain:9.2f}{ours:9.2f}{plain:28.2f}"


def compare_small(count: int) -> Iterator[str]:
    results: dict[str, list[dict[str, Any]]] = {}
    names = [NOTHING, DISTRIB, "Keras BackupAndRestore"]
    for name, result, _ in rounds(names, "train small", count):
        results.setdefault(name, []).append(result)
    step = median(r["step"] for r in results[NOTHING])
    yield f"one save in {SMALL.every} steps of {step * 1e3:.2f} ms, medians of {count} rounds"
    yield f"\n{'':28}{'blocked':>18}{'wall for each save':>21}"
    yield f"{'':28}{'steps':>9}{'ms':>9}{'steps':>12}{'ms':>9}"
    for name, some in results.items():
        blocked = median(
            sum(both) for r in some for both in zip(r["pause"], r["next step"], strict=True)
        )
        wall = median(r["wall"] for r in some)
        yield (
            f"{name:28}{blocked / step:9.1f}{blocked * 1e3:9.2f}"
            f"{wall / step:12.1f}{wall * 1e3:9.2f}"
        )


def plain_transfers(files: Sequence[Path], store: Any, root: str) -> dict[str, tuple[Job, Job]]:
    """Ways to put `files`, all of one folder, into a store and to get them back."""
    folder = files[0].parent
    back = folder.with_name("back")
    back.mkdir(exist_ok=True)

    def all_at_once(one: Callable[[Path], Any]) -> Job:
        def run() -> None:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(one, files))

        return run

    ways: dict[str, tuple[Job, Job]] = {
        "put, get, recursive": (
            lambda: store.put(f"{folder}/", f"{root}/", recursive=True),
            lambda: store.get(f"{root}/", f"{back}/", recursive=True),
        ),
        "pipe_file, cat_file in threads": (
            all_at_once(lambda file: store.pipe_file(f"{root}/{file.name}", file.read_bytes())),
            all_at_once(lambda file: store.cat_file(f"{root}/{file.name}")),
        ),
    }
    if "s3" in store.protocol:
        import boto3
        from boto3.s3.transfer import TransferConfig

        client, config = boto3.client("s3"), TransferConfig(max_concurrency=10)
        bucket, _, prefix = root.partition("/")
        put, get = client.upload_file, client.download_file
        ways["boto3 in threads"] = (
            all_at_once(lambda f: put(str(f), bucket, f"{prefix}/{f.name}", Config=config)),
            all_at_once(lambda f: get(bucket, f"{prefix}/{f.name}", back / f.name, Config=config)),
        )
    return ways


def own_transfer(files: Sequence[Path], url: str) -> tuple[Job, Job]:
    """The same by the engine's own means, from arrays and back into memory, all checksummed."""
    contents = [np.fromfile(file, np.uint8) for file in files]
    data = [
        DataFile(file.name, len(content), [(0, content)])
        for file, content in zip(files, contents, strict=True)
    ]
    place = locate(url, "directory")
    entries: list[FileEntry] = []

    def put() -> None:
        entries[:] = transfer.write(data, place, None)

    return put, lambda: transfer.read(entries, place, None, {})


def compare_store(count: int, url: str) -> Iterator[str]:
    url = f"{url.rstrip('/')}/{secrets.token_hex(4)}"
    store, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        in_process("save once", f"{folder}/run")
        sizes = [file.stat().st_size for file in newest(f"{folder}/run")]
        files = [Path(folder, "files", str(number)) for number in range(len(sizes))]
        files[0].parent.mkdir()
        for file, size in zip(files, sizes, strict=True):
            file.write_bytes(np.random.default_rng(0).bytes(size))
        # A server may be slower right after a write, and a run's last save comes after its first.
        before = plain_transfers(files, store, f"{root}/before")
        ways = plain_transfers(files, store, f"{root}/plain")
        every = {**ways, TRANSFER: own_transfer(files, f"{url}/plain")}
        before[TRANSFER] = own_transfer(files, f"{url}/before")
        try:
            for number in range(count):
                for name, (put, get) in every.items():
                    before[name][0]()
                    seconds.setdefault(name, []).append((seconds_of(put), seconds_of(get)))
                    store.rm([f"{root}/plain", f"{root}/before"], recursive=True)
                run = f"{url}/{number}"
                if (saved := in_process("save once", run)) is not None:
                    seconds.setdefault(RUN, []).append((saved, in_process("restore", run)))
                    store.rm(f"{root}/{number}", recursive=True)
        finally:
            if store.exists(root):
                store.rm(root, recursive=True)
    middle = {
        name: [median(way) for way in zip(*times, strict=True)] for name, times in seconds.items()
    }
    size, fastest = sum(sizes), [min(middle[name][way] for name in ways) for way in (0, 1)]
    yield f"{len(sizes)} files, {size / 1e6:.0f} MB, medians of {count} rounds"
    yield f"\n{'':32}{'save':>20}{'restore':>20}"
    yield f"{'':32}" + f"{'x fastest':>10}{'MB/s':>10}" * 2
    for name, times in middle.items():
        columns = zip(fastest, times, strict=True)
        yield f"{name:32}" + "".join(f"{b / t:10.2f}{size / t / 1e6:10.0f}" for b, t in columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a model of a few bytes")
    parser.add_argument("--store", metavar="URL", help="throughput to and from s3:// or gs://")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        report, job, *arguments = args.job
        Path(report).write_text(json.dumps(JOBS[job](*arguments)))
        return
    compare = compare_small if args.small else compare_large
    for line in compare_store(args.rounds, args.store) if args.store else compare(args.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
