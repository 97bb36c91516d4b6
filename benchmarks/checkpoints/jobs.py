"""The jobs that are measured, each in a fresh process."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import keras

from common.measuring import seconds_of
from distrib.callbacks import BackupAndRestore
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.errors import EXIT_CONFIGURATION
from distrib.state.run_checkpoint import RunCheckpoint
from distrib.storage.locate import locate
from distrib.storage.write_check import check_writable

from .training import train
from .workload import LARGE, SMALL

SCRIPT = Path(__file__).parents[1] / "checkpoint.py"


def restore_distrib(directory: str) -> Any:
    """Load the newest checkpoint of a run into memory, verified."""
    return CheckpointDirectory(locate(directory, "directory")).load_newest(RunCheckpoint.load)


def restore_plain(directory: str) -> Any:
    """Read and checksum the same files: the least that a verifying restore has to do."""
    contents = [path.read_bytes() for path in newest_files(directory)]
    return contents, [google_crc32c.value(content) for content in contents]


def newest_files(directory: str) -> list[Path]:
    """Return the files of the newest checkpoint of a run on the local disk."""
    folders = Path(directory, "checkpoints").glob("*[0-9]")
    folder = max(folders, key=lambda path: int(path.name))
    return [path for path in folder.rglob("*") if path.is_file()]


def restore(directory: str, method: str = "distrib", cache: str = "") -> float:
    """Return the seconds of a restore.

    Args:
        directory: Path or URL of the run.
        method: `"distrib"` or `"plain"`. Defaults to `"distrib"`.
        cache: `"warm"` reads the files into the page cache before, `"cold"` asks the kernel to drop
            them. Defaults to `""`, which does neither.
    """
    # A training has Orbax and the store's library loaded, and every start checks the directory.
    import orbax.checkpoint  # noqa: F401

    check_writable(locate(directory, "directory"), "directory")
    for path in newest_files(directory) if cache else ():
        with path.open("rb") as file:
            if cache == "warm":
                file.read()
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    work = restore_distrib if method == "distrib" else restore_plain
    gc.collect()  # A collection of the imports' objects would take longer than the restore.
    return seconds_of(lambda: work(directory))


def save_once(url: str) -> float:
    """Return the seconds of a run's last save, which blocks: no step runs beside it."""
    times: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: times.append(time.perf_counter()),
        on_train_end=lambda logs: times.append(time.perf_counter()),
    )
    backup = BackupAndRestore(url, save_freq=1000)
    LARGE.model().fit(LARGE.data(2), verbose=0, callbacks=[clock, backup])
    return times[1] - times[0]


JOBS: dict[str, Callable[..., Any]] = {
    "train": partial(train, LARGE),
    "train small": partial(train, SMALL),
    "restore": restore,
    "save once": save_once,
}


def run_job(report: str, job: str, *arguments: str) -> None:
    """Run one of `JOBS` in this process, and write its result to the file `report` as JSON."""
    Path(report).write_text(json.dumps(JOBS[job](*arguments)))


def run_in_fresh_process(job: str, *arguments: str) -> Any:
    """Return the result of one of `JOBS`, or `None` if its contender is not available here."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        command = [sys.executable, str(SCRIPT), "--job", report.name, job, *arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode == EXIT_CONFIGURATION:
            print(f"left out: {arguments[0]}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            return None
        if done.returncode:
            raise SystemExit(f"{done.stderr}\n{job} {arguments} ended with {done.returncode}")
        return json.load(report)
