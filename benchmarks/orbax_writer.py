"""Compare distrib's checkpoint writer with Orbax and TensorStore writing the same format.

    python benchmarks/orbax_writer.py          # 477 MB of float32 to the local disk, 3 rounds

`distrib/checkpoint/orbax_format.py` and `ocdbt.py` encode by hand what Orbax and TensorStore can
write. This benchmark shows what that saves. Every writer gives the same guarantees at the end: all
files are flushed to disk, and the manifest knows the size and CRC32C of each. The files of the
libraries are read back for the CRC32C. Each measurement runs in a fresh process, the writers take
turns, and the fifth save of the process counts.

Columns:

- time: seconds until every byte is durable and checksummed. On a busy machine distrib's is
  overstated, because its writing threads have a lower priority.
- CPU: seconds of all threads, which training has to do without.
- memory: rise of the process's peak memory above the arrays.
- gap: longest time that another Python thread, which wakes every millisecond, was held up.
- files: one request each when a checkpoint goes to an object store.

`distrib, file by file` is Orbax's layout without OCDBT: every chunk of an array is a file that
holds the chunk's bytes, so there is no OCDBT database to encode.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import google_crc32c
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging

from distrib.checkpoint import layout, orbax_format, transfer
from distrib.checkpoint.orbax_format import ARRAYS, DataFile
from distrib.storage.local_files import fsync
from distrib.storage.locate import locate

Arrays = dict[str, np.ndarray[Any, Any]]
WIDTH, LAYERS, VOCABULARY = 640, 6, 16_000


def transformer() -> Arrays:
    """Make the weights of a transformer with 40 million parameters, and both slots of Adam."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        for name in ("query", "key", "value", "output"):
            shapes[f"{layer}/{name}/kernel"] = (WIDTH, WIDTH)
            shapes[f"{layer}/{name}/bias"] = (WIDTH,)
        shapes[f"{layer}/up/kernel"], shapes[f"{layer}/up/bias"] = (WIDTH, 4 * WIDTH), (4 * WIDTH,)
        shapes[f"{layer}/down/kernel"], shapes[f"{layer}/down/bias"] = (4 * WIDTH, WIDTH), (WIDTH,)
        for name in ("norm1/gamma", "norm1/beta", "norm2/gamma", "norm2/beta"):
            shapes[f"{layer}/{name}"] = (WIDTH,)
    return {
        f"{slot}/{name}": rng.standard_normal(shape, np.float32)
        for slot in ("weight", "momentum", "velocity")
        for name, shape in shapes.items()
    }


# The writers: each writes `arrays` into a new folder.


def by_distrib(arrays: Arrays, folder: Path) -> None:
    files = orbax_format.files({"model": arrays}, {})
    transfer.write(files, locate(folder, "directory"), None)


def by_distrib_file_by_file(arrays: Arrays, folder: Path) -> None:
    files = []
    for placed in layout.plan({"model": arrays}).arrays:
        content = json.dumps(orbax_format._zarray(placed)).encode()
        files.append(DataFile.of(f"model.{placed.name}/.zarray", content))
        for number, block in enumerate(placed.blocks):
            path = f"model.{placed.name}/{number}{'.0' * (placed.array.ndim - 1)}"
            files.append(DataFile(path, block.length, [(0, block.data)]))
    transfer.write(files, locate(folder, "directory"), None)


def by_orbax(arrays: Arrays, folder: Path, **options: Any) -> None:
    handler = ocp.PyTreeCheckpointHandler(**options)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            folder / ARRAYS,
            ocp.args.PyTreeSave(
                {"model": arrays},
                ocdbt_target_data_file_size=layout.MAX_FILE_BYTES
                if options.get("use_zarr3")
                else None,
            ),
        )
    sync_and_checksum(folder)


def by_tensorstore(arrays: Arrays, folder: Path, mode: str = "default") -> None:
    write_zarr(arrays, f"file://{folder}/", ts.Context({"file_io_mode": {"mode": mode}}))
    sync_and_checksum(folder)


def by_tensorstore_in_memory(arrays: Arrays, folder: Path) -> None:
    """Let TensorStore build the database in memory, and write its files as distrib does."""
    context = ts.Context()
    write_zarr(arrays, "memory://", context)
    store = ts.KvStore.open("memory://", context=context).result()
    files = [DataFile.of(key.decode(), store[key]) for key in store.list().result()]
    transfer.write(files, locate(folder, "directory"), None)


def write_zarr(arrays: Arrays, base: str, context: ts.Context) -> None:
    """Write uncompressed zarr arrays in an OCDBT database, as Orbax does, in one transaction."""
    database = {
        "driver": "ocdbt",
        "base": base,
        "config": {"compression": None, "max_inline_value_bytes": 1024},
        "target_data_file_size": layout.MAX_FILE_BYTES,
    }
    with ts.Transaction() as transaction:
        for name, array in arrays.items():
            spec = {
                "driver": "zarr",
                "kvstore": {**database, "path": f"model.{name}/"},
                "metadata": {"chunks": rows(array), "compressor": None},
            }
            target = ts.open(
                spec,
                create=True,
                dtype=array.dtype,
                shape=array.shape,
                context=context,
                transaction=transaction,
            ).result()
            target.write(array, can_reference_source_data_indefinitely=True).result()


def rows(array: np.ndarray[Any, Any]) -> list[int]:
    """Return the shape of a chunk of at most `layout.MAX_FILE_BYTES` bytes."""
    return [min(array.shape[0], layout.MAX_FILE_BYTES // array[:1].nbytes), *array.shape[1:]]


def sync_and_checksum(folder: Path) -> None:
    """Flush and checksum the files of a library, which distrib's writer does as it writes."""

    def one(path: Path) -> int:
        fsync(path)
        return int(google_crc32c.value(path.read_bytes()))

    paths = [path for path in folder.rglob("*") if path.is_file()]
    transfer.parallel_map(one, paths, transfer.LOCAL_WORKERS)


DISTRIB = "distrib"
WARM_UP = 4
WRITERS: dict[str, Callable[[Arrays, Path], None]] = {
    DISTRIB: by_distrib,
    "distrib, file by file": by_distrib_file_by_file,
    "TensorStore, to file://": by_tensorstore,
    "TensorStore, O_DIRECT": partial(by_tensorstore, mode="direct"),
    "TensorStore, to memory://": by_tensorstore_in_memory,
    "Orbax": by_orbax,
    "Orbax, uncompressed": partial(by_orbax, use_compression=False),
    "Orbax, uncompressed, no OCDBT": partial(by_orbax, use_compression=False, use_ocdbt=False),
    "Orbax, zarr3, 16 MiB files": partial(by_orbax, use_zarr3=True),
}


# The measurement


@contextmanager
def longest_gap() -> Iterator[list[float]]:
    """Yield a list that holds, after the block, the longest wait of another thread in seconds."""
    gap = [0.0]
    done = threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not done.wait(0.001):
            now = time.perf_counter()
            gap[0] = max(gap[0], now - last - 0.001)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    yield gap
    done.set()
    thread.join()


def peak() -> int:
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * 1024


def measure(name: str, folder: str) -> dict[str, float]:
    logging.set_verbosity(logging.ERROR)
    arrays = transformer()
    before, target = peak(), Path(folder, "checkpoint")
    for number in range(WARM_UP):
        WRITERS[name](arrays, Path(folder, str(number)))
        shutil.rmtree(Path(folder, str(number)))
    os.sync()
    cpu, began = time.process_time(), time.perf_counter()
    with longest_gap() as gap:
        WRITERS[name](arrays, target)
    return {
        "time": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "memory": peak() - before,
        "gap": gap[0],
        "files": sum(path.is_file() for path in target.rglob("*")),
        "state": sum(array.nbytes for array in arrays.values()),
        "arrays": len(arrays),
    }


def in_process(name: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        command = [sys.executable, __file__, "--writer", name, folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writer", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.writer:
        print(json.dumps(measure(*args.writer)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in WRITERS}
    for _ in range(args.rounds):
        for name in WRITERS:
            results[name].append(in_process(name))
    medians = {
        name: {key: median(result[key] for result in some) for key in some[0]}
        for name, some in results.items()
    }
    ours = medians[DISTRIB]
    print(
        f"{ours['arrays']:.0f} arrays, {ours['state'] / 1e6:.0f} MB, {args.rounds} rounds, medians"
    )
    columns = ("x time", "s", "x CPU", "s", "memory MB", "gap ms", "files")
    print(f"{'':30}" + "".join(f"{column:>10}" for column in columns))
    for name, m in medians.items():
        print(
            f"{name:30}{m['time'] / ours['time']:10.2f}{m['time']:10.2f}"
            f"{m['cpu'] / ours['cpu']:10.2f}{m['cpu']:10.2f}"
            f"{m['memory'] / 1e6:10.0f}{m['gap'] * 1e3:10.0f}{m['files']:10.0f}"
        )


if __name__ == "__main__":
    main()
