"""Tables of what saving costs a training, for a large and for a small model."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from statistics import median
from typing import Any

from common.measuring import seconds_of

from .contenders import CONTENDERS, DISTRIB, KERAS_BACKUP, NO_SAVING
from .jobs import run_in_fresh_process
from .workload import SMALL

Results = dict[str, list[dict[str, Any]]]


def dd(folder: str, size: int) -> None:
    """Write `size` bytes with `dd`, and flush them to the disk."""
    command = ["dd", "if=/dev/zero", f"of={folder}/zeros", "bs=4M", "conv=fsync", "status=none"]
    subprocess.run([*command, "iflag=count_bytes", f"count={size}"], check=True)


def train_in_turn(
    contenders: Iterable[str], job: str, rounds: int
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield contender, results and folder of each training.

    `NO_SAVING` has to be the first contender: `wall` (per save) and `peak` are differences to it.
    """
    for _ in range(rounds):
        for name in contenders:
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                os.sync()
                if (result := run_in_fresh_process(job, name, f"{folder}/run")) is None:
                    continue
                if name == NO_SAVING:
                    baseline = {key: result[key] for key in ("wall", "peak")}
                extra = {key: result[key] - value for key, value in baseline.items()}
                extra["wall"] /= result["saves"]
                if result["skipped"]:
                    print(f"{name} skipped {result['skipped']} of its saves", flush=True)
                yield name, {**result, **extra}, folder


def compare_large(rounds: int) -> Iterator[str]:
    results: Results = {}
    restores: dict[tuple[str, str], list[float]] = {}
    dd_seconds = []
    for name, result, folder in train_in_turn(CONTENDERS, "train", rounds):
        results.setdefault(name, []).append(result)
        dd_seconds.append(seconds_of(partial(dd, folder, result["state"])))
        for cache in ("cold", "warm") if name == DISTRIB else ():
            for method in ("distrib", "plain"):
                seconds = run_in_fresh_process("restore", f"{folder}/run", method, cache)
                restores.setdefault((method, cache), []).append(seconds)
    everything = [result for some in results.values() for result in some]
    state, dd_time = everything[0]["state"], median(dd_seconds)
    step, memcpy = (median(r[key] for r in everything) * 1e3 for key in ("step", "memcpy"))
    yield f"{state / 1e6:.0f} MB of state, medians of {rounds} rounds: a step takes {step:.0f} ms,"
    yield f"a copy in memory {memcpy:.0f} ms, dd with fsync {dd_time:.2f} s"
    yield from save_table(results, state, dd_time)
    yield from restore_table(restores)


def save_table(results: Results, state: int, dd_time: float) -> Iterator[str]:
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
            f"{commit / dd_time:7.2f}{commit:7.2f}{peak / state:8.2f}{peak / 1e6:8.0f}"
        )


def restore_table(restores: dict[tuple[str, str], list[float]]) -> Iterator[str]:
    yield f"\n{'restore':28}{'x plain':>9}{'s':>9}{'plain read and CRC32C, s':>28}"
    for cache in ("cold", "warm"):
        verified, plain = median(restores["distrib", cache]), median(restores["plain", cache])
        yield f"{cache + ' cache':28}{verified / plain:9.2f}{verified:9.2f}{plain:28.2f}"


def compare_small(rounds: int) -> Iterator[str]:
    results: Results = {}
    contenders = [NO_SAVING, DISTRIB, KERAS_BACKUP]
    for name, result, _ in train_in_turn(contenders, "train small", rounds):
        results.setdefault(name, []).append(result)
    step = median(r["step"] for r in results[NO_SAVING])
    yield f"one save in {SMALL.save_freq} steps of {step * 1e3:.2f} ms, medians of {rounds} rounds"
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
